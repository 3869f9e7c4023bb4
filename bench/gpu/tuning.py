"""What is worth measuring for the dispatcher's table, most wanted first: BERT-base, BERT-large, MiniLM."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from sparseticket.bench.gpu import optimizers
from sparseticket.bench.gpu.lab import Lab
from sparseticket.bench.gpu.prepare import Pool, kernels_of
from sparseticket.kernels.dispatch import LAUNCHES, Case

BERT_BASE, BERT_LARGE, MINILM = 768, 1024, 384  # hidden sizes
TRAIN = (("forward", "bias"), ("dgrad", "none"), ("wgrad", "none"))
INFER, BOTH = ("infer",), ("infer", "train")
OF_NETWORKS = (0.3, 0.4)  # of 75 % zeros ranked over all layers, a quarter of the 768² leave over 0.3, none 0.4
DENSITIES = (0.3, 0.15, 0.5)  # the next higher one speaks for a layer: layers differ under a ranked mask
MANY, FEW = (4096, 1024, 16384), (16, 64, 1)  # rows


def cells(lab: Lab) -> Iterator[tuple[Case, int, float]]:
    """Cases, rows and densities in order of priority; those that are in the table already are left out."""
    there = {(cell.case, cell.m, cell.density) for cell in lab.table.cells}
    for wanted in dict.fromkeys(_wanted(lab)):
        if wanted not in there:
            yield wanted


def of_bert_base(lab: Lab) -> list[tuple[Case, int, float]]:
    """What the entries with a whole BERT-base need before they run."""
    rows = lab.rows(4096)
    cases = _cases(lab, BERT_BASE, _square(lab, 128), "bfloat16", BOTH)
    launched = [case for case in cases if case.launched in ("compiled", "graph")]
    return [(case, rows, density) for density in OF_NETWORKS for case in launched]


def tune(lab: Lab, processes: Pool, *, reserve: float = 0.0) -> int:
    """Measure until the time is used but for ``reserve`` seconds; says how many cells are still missing."""
    for measure_cell in optimizers.cells(lab):
        if lab.seconds_left > reserve:
            lab.try_to(measure_cell, "an optimizer's cell")
    todo = list(cells(lab))
    while todo and lab.seconds_left > reserve:
        case, _, _ = todo[0]
        alike = [wanted for wanted in todo if (wanted[0].pattern, wanted[0].dtype) == (case.pattern, case.dtype)]
        processes.run(kernels_of(alike))
        lab.try_cell(*todo.pop(0))
    return len(list(cells(lab))) + len(optimizers.cells(lab))


def _wanted(lab: Lab) -> Iterator[tuple[Case, int, float]]:
    yield from of_bert_base(lab)
    groups = [
        (BERT_BASE, _square(lab, 128), "bfloat16", BOTH, MANY),
        (BERT_LARGE, _square(lab, 128), "bfloat16", BOTH, MANY),
        (BERT_BASE, "unstructured", "bfloat16", INFER, FEW),
        (BERT_BASE, _square(lab, 64), "bfloat16", BOTH, MANY),
        (MINILM, _square(lab, 64), "bfloat16", BOTH, MANY),
        (MINILM, _square(lab, 32), "bfloat16", BOTH, MANY),
        (BERT_BASE, "2:4", "bfloat16", INFER, MANY),
        (BERT_LARGE, "unstructured", "bfloat16", INFER, FEW),
        (BERT_BASE, _square(lab, 32), "bfloat16", BOTH, MANY),
        (BERT_BASE, _square(lab, 128), "float16", BOTH, MANY),
        (BERT_LARGE, _square(lab, 64), "bfloat16", BOTH, MANY),
    ]
    for hidden, pattern, dtype, modes, rows in groups[:1] if lab.rehearse else groups:
        for density, m in product(DENSITIES, rows):
            for case in _cases(lab, hidden, pattern, dtype, modes):
                yield case, lab.rows(m), density


def _square(lab: Lab, side: int) -> str:
    rows, columns = lab.block(side)
    return f"block:{rows}x{columns}"


def _cases(lab: Lab, hidden: int, pattern: str, dtype: str, modes: tuple[str, ...]) -> Iterator[Case]:
    """A BERT's linears, as they run for inference (Q, K and V as one, GELU behind the feed-forward) or in training."""
    h, inner = lab.side(hidden), 4 * lab.side(hidden)
    for launched in LAUNCHES:
        if "infer" in modes:
            for n, k, epilogue in ((inner, h, "bias+gelu"), (h, inner, "bias"), (3 * h, h, "bias"), (h, h, "bias")):
                yield Case("infer", n, k, pattern, dtype, epilogue, launched)
        if "train" in modes:
            for n, k in ((inner, h), (h, inner), (h, h)):
                for which, epilogue in TRAIN:
                    yield Case(which, n, k, pattern, dtype, epilogue, launched)
