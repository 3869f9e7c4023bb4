"""How an answer is scored: exact match and F1 as the official evaluation script of SQuAD v1.1 defines them.

``torchmetrics.text.SQuAD`` agrees but where nothing is left of both texts after normalization ("the", "a"): it follows
the script of v2.0 there (F1 1), and the one of v1.1 says 0. A test compares the two.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII's: the script leaves all other marks where they are


def normalize(answer: str) -> str:
    """Lower case, without punctuation, then without articles, one space between words."""
    bare = answer.lower().translate(PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(prediction: str, answers: Iterable[str]) -> float:
    """1.0 where the prediction is one of the answers, both normalized."""
    return float(any(normalize(prediction) == normalize(answer) for answer in answers))


def f1(prediction: str, answers: Iterable[str]) -> float:
    """The best harmonic mean of precision and recall over words that the prediction has with any of the answers."""
    return max(_f1(normalize(prediction).split(), normalize(answer).split()) for answer in answers)


def _f1(prediction: list[str], answer: list[str]) -> float:
    shared = (Counter(prediction) & Counter(answer)).total()
    return 2 * shared / (len(prediction) + len(answer)) if shared else 0.0
