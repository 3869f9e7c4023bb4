"""``sparseticket find``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from sparseticket.cli.training import (
    BatchSize,
    CheckpointEvery,
    Kernels,
    Lr,
    MaxLength,
    Optimizer,
    Precision,
    RoundLength,
    WeightDecay,
)


def find(
    model: Annotated[str, Option(help="Alias (bert-base, minilm, resnet50, resnet20-cifar, …), hub name or folder.")],
    task: Annotated[str | None, Option(help="Task to find it on. Default for text: mlm, the universal ticket.")] = None,
    sparsity: Annotated[float | None, Option(help="Target: share of zeros, 0.7 is 70 %.")] = None,
    schedule: Annotated[
        str | None, Option(help="linear:0.1, geometric:0.2, steps:0.3,0.5,0.7, one-round or one-shot.")
    ] = None,
    round_length: RoundLength = None,
    protocol: Annotated[str, Option(help="paper, or released (as the papers' code was).")] = "paper",
    rewind: Annotated[str | None, Option(help="theta_p, 5%, 1ep, 500it, or none.")] = None,
    head: Annotated[str | None, Option(help="rewind or keep the task's head between rounds.")] = None,
    optimizer_state: Annotated[str | None, Option(help="fresh or keep between rounds.")] = None,
    lr_schedule: Annotated[str | None, Option(help="restart in every round, or keep one over all rounds.")] = None,
    prune_pooler: Annotated[bool | None, Option(help="Prune a BERT's pooler too.")] = None,
    prune_first: Annotated[bool | None, Option(help="Prune before any training.")] = None,
    pattern: Annotated[
        str | None, Option(help="unstructured, 2:4, block:64x64, heads, neurons, heads+neurons, channels.")
    ] = None,
    optimizer: Optimizer = None,
    lr: Lr = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    weight_decay: WeightDecay = None,
    temperature: Annotated[float | None, Option(help="Of simclr's and moco's losses.")] = None,
    queue: Annotated[int | None, Option(help="Keys that moco holds.")] = None,
    precision: Precision = None,
    kernels: Kernels = None,
    dense: Annotated[
        bool, Option("--dense/--no-dense", help="Where pruning comes first: train one dense network for reference.")
    ] = True,
    seed: Annotated[int, Option(help="Every random draw is a function of it.")] = 0,
    weights: Annotated[
        Path | None, Option(help="File of the pre-trained weights, instead of the model's own; random: none.")
    ] = None,
    data: Annotated[Path | None, Option(help="File or folder of the task's data.")] = None,
    out: Annotated[Path | None, Option(help="Run folder. Default: runs/MODEL-TASK.")] = None,
    checkpoint_every: CheckpointEvery = 300.0,
) -> None:
    """Find a lottery ticket: train, prune, rewind, repeat. Run again to continue."""
    from sparseticket.imp import find as search
    from sparseticket.options import default_folder, find_settings
    from sparseticket.progress import Screen
    from sparseticket.show import show_find

    settings = find_settings(
        model,
        task=task,
        protocol_name=protocol,
        data=data,
        weights=weights,
        seed=seed,
        dense=dense,
        protocol={
            "schedule": schedule,
            "sparsity": sparsity,
            "pattern": pattern,
            "rewind": rewind,
            "head": head,
            "optimizer_state": optimizer_state,
            "lr_schedule": lr_schedule,
            "prune_pooler": prune_pooler,
            "prune_first": prune_first,
        },
        training={
            "round_length": round_length,
            "batch_size": batch_size,
            "max_length": max_length,
            "optimizer": optimizer,
            "lr": lr,
            "weight_decay": weight_decay,
            "temperature": temperature,
            "queue": queue,
            "precision": precision,
            "kernels": kernels,
        },
    )
    screen = Screen()
    folder = out or default_folder(settings.model, settings.task)
    show_find(screen, search(settings, folder, screen=screen, checkpoint_every=checkpoint_every), folder)
