"""What tells one data set of files from another, so that a run never goes on with data that were changed under it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence

from sparseticket.errors import UserError
from sparseticket.tasks.image_files import DataFiles, is_image

Pair = tuple[str, str]
HASHED_BYTES = 2**29  # SHA-256 of so much takes 0.4 s, and reading it about as long; ImageNet's 140 GB take minutes


def digests(files: DataFiles, names: Iterable[str], *, labels: Collection[str] = ()) -> dict[str, str]:
    """What each file is, in the order of ``names``: SHA-256 of its content.

    In a data set above 512 MB it is the size in bytes alone for images that are not ``labels`` (masks).

    Raises:
        UserError: a name is not UTF-8, or a file cannot be read.
    """
    wanted = list(names)
    if odd := [name for name in wanted if not _is_utf8(name)]:
        raise UserError(f"--data {files.source}: the name {odd[0]!a} in it is not UTF-8. Rename it.")
    small = sum(files.sizes[name] for name in wanted) <= HASHED_BYTES
    return {
        name: sha256(files.read(name)) if small or name in labels or not is_image(name) else str(files.sizes[name])
        for name in wanted
    }


def identity(*splits: Mapping[str, str]) -> str:
    """SHA-256 over each split's names and digests in their order: the same for a folder and a zip of it."""
    lines = (f"{name}\0{digest}\n" for split in splits for name, digest in [("", ""), *split.items()])
    return sha256("".join(lines).encode())


def identify_pairs(files: DataFiles, train: Sequence[Pair], evaluation: Sequence[Pair]) -> tuple[str, tuple[str, ...]]:
    """The identity of images that have their labels in a file each, and what is to be said of them.

    ``train`` and ``evaluation`` are names of an image and of its labels' file.

    Raises:
        UserError: as :func:`digests` and :func:`check_apart`.
    """
    pairs = [*train, *evaluation]
    found = digests(files, (name for pair in pairs for name in pair), labels={labels for _, labels in pairs})
    notes = check_apart(files, *([found[image] for image, _ in split] for split in (train, evaluation)))
    return identity(*({name: found[name] for pair in split for name in pair} for split in (train, evaluation))), notes


def check_apart(files: DataFiles, train: Iterable[str], evaluation: Iterable[str]) -> tuple[str, ...]:
    """A note where some of the images to evaluate on are trained on, too, by their :func:`digests`.

    Sizes alone tell nothing: above 512 MB nothing is said.

    Raises:
        UserError: all of them are.
    """
    known, asked = set(train), list(evaluation)
    shared = sum(digest in known and not digest.isdecimal() for digest in asked)
    if shared == len(asked):
        raise UserError(
            f"--data {files.source}: every image to evaluate on is one to train on, too. Its score would say nothing: "
            "evaluate on others."
        )
    return (f"{shared} of the {len(asked)} images to evaluate on are trained on, too.",) if shared else ()


def sha256(content: bytes) -> str:
    """As 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:  # surrogates stand for the bytes that are none
        return False
