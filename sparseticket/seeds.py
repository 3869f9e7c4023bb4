"""Every random draw is a function of names, not of history: so a killed run repeats itself bit for bit."""

import hashlib

import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the draw called by ``names`` (e.g. ``derive(0, "order", round, epoch)``)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for the draw called by ``names``."""
    return torch.Generator().manual_seed(derive(seed, *names))
