"""What tells one data set of files from another, so that a run never goes on with data that were changed under it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from sparseticket.errors import UserError
from sparseticket.tasks.image_files import DataFiles, is_image

HASHED_BYTES = 2**29  # SHA-256 of so much takes 0.4 s, and reading it about as long; ImageNet's 140 GB take minutes


def digests(files: DataFiles, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each file's content; of an image in a data set above 512 MB, of its name and size."""
    wanted = list(names)
    small = sum(files.sizes[name] for name in wanted) <= HASHED_BYTES
    return {
        name: sha256(files.read(name) if small or not is_image(name) else f"{name}\0{files.sizes[name]}".encode())
        for name in wanted
    }


def identity(digests: Mapping[str, str]) -> str:
    """SHA-256 over sorted (name, digest): the same for a folder and a zip of it."""
    return sha256("".join(f"{name}\0{digest}\n" for name, digest in sorted(digests.items())).encode())


def check_apart(files: DataFiles, train: Iterable[str], evaluation: Iterable[str]) -> None:
    """Raise :class:`UserError` where every digest of ``evaluation`` is one of ``train`` too."""
    if set(evaluation) <= set(train):
        raise UserError(
            f"--data {files.source}: every image to evaluate on is one to train on, too. Its score would say nothing: "
            "evaluate on others."
        )


def sha256(content: bytes) -> str:
    """As 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
