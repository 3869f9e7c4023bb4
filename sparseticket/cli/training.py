"""The options of a training, which find, transfer and matrix have alike."""

from __future__ import annotations

from typing import Annotated

from typer import Option

RoundLength = Annotated[str | None, Option(help="Length of each training: 3ep or 500it.")]
Optimizer = Annotated[str | None, Option(help="adamw, sgd or lars.")]
Lr = Annotated[float | None, Option(help="Learning rate.")]
BatchSize = Annotated[int | None, Option(help="Examples a step, over all processes.")]
MaxLength = Annotated[int | None, Option(help="Tokens of a text.")]
WeightDecay = Annotated[float | None, Option(help="Weight decay.")]
Precision = Annotated[str | None, Option(help="no, fp16 or bf16 (mixed precision).")]
Kernels = Annotated[
    str | None, Option(help="auto: on a GPU, sparse kernels where they are faster. off: dense everywhere.")
]
CheckpointEvery = Annotated[float, Option(help="Seconds between checkpoints inside a training.")]
