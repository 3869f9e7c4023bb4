"""How long SST-2's sentences are, in tokens, in the order of one shuffled epoch."""

from __future__ import annotations

import csv
import random

from sparseticket.bench.gpu.lab import Lab

MOST = 128
SENTENCES = 4096


def sst2_lengths(lab: Lab) -> tuple[list[int], str]:
    """Lengths of some thousand sentences, and how they were counted.

    Raises:
        RuntimeError: no data was given, or it is not SST-2 in GLUE's layout.
    """
    if lab.data is None:
        raise RuntimeError("give --data, the folder of SST-2 with train.tsv or dev.tsv")
    file = next((lab.data / name for name in ("train.tsv", "dev.tsv") if (lab.data / name).is_file()), None)
    if file is None:
        raise RuntimeError(f"{lab.data} has neither train.tsv nor dev.tsv")
    with file.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        texts = [row["sentence"] for row in rows if row.get("sentence")]
    random.Random(0).shuffle(texts)
    texts = texts[:SENTENCES]
    if lab.minilm is None:
        return [min(MOST, len(text.split()) + 2) for text in texts], f"{file.name}, words + 2 (no tokenizer was given)"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(lab.minilm)
    ids = tokenizer(texts, truncation=True, max_length=MOST)["input_ids"]
    return [len(one) for one in ids], f"{file.name}, tokens of BERT's uncased vocabulary"
