"""The files of a data set by name, in a folder, a zip or a tar that stays packed; and the images decoded from them.

Nothing is ever written where an archive says, a member must be of the size that is stated, and an archive's links are
refused. A folder's links are followed.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import get_worker_info

from sparseticket.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
THREADED_BYTES = 16 * 1024  # 32x32 JPEGs of 1 KB took 0.26 ms one after another and 0.41 ms on two threads
LARGEST_FILE = 2**30  # bytes; no image or label file of a published data set is near it
UNPACKED_BYTES = 2 * 2**30  # what a compressed tar, which has no random access, may hold in memory


@dataclass(frozen=True)
class DataFiles:
    """Files by their names below one folder ("/" between parts): sizes in bytes, and how to read one.

    Reading is safe from several threads and from processes forked later.
    """

    source: Path
    sizes: dict[str, int]
    get: Callable[[str], bytes]

    def read(self, name: str) -> bytes:
        """The whole content of a file; :class:`UserError` names one that is gone, too large or damaged."""
        try:
            if self.sizes[name] > LARGEST_FILE:
                raise ValueError(f"{self.sizes[name]:,} bytes are too many")
            content = self.get(name)
            if len(content) != self.sizes[name]:
                raise ValueError(f"{len(content):,} bytes instead of {self.sizes[name]:,}")
        except Exception as error:  # zipfile alone raises BadZipFile, RuntimeError, NotImplementedError, zlib.error …
            raise UserError(f"{self.source}: {name} cannot be read ({error}). Replace it or take it out.") from error
        return content

    def decode(self, name: str, mode: str = "RGB") -> Tensor:
        """An image, uint8 [3, H, W]. With ``mode`` "P", palette indices or grey values, [1, H, W].

        Raises:
            UserError: names an image that is corrupt, gone or, for "P", without a palette or single channel.
        """
        image = self._opened(name)
        try:
            if mode != "P" and image.mode.startswith(("I", "F")):  # PIL would cut 16 bits off at 255: a white picture
                raise ValueError(f"its pixels are {image.mode}, not 8 bits a channel: convert it")
            if mode == "P" and image.mode not in ("P", "L", "1"):
                raise ValueError(f"its pixels are {image.mode}, not class indices")
            pixels = np.array(image if mode == "P" else image.convert(mode), dtype=np.uint8)
        except Exception as error:  # on damaged files PIL's decoders raise nearly anything
            raise UserError(
                f"{self.source}: the image {name} cannot be read ({error}). Replace it or take it out."
            ) from error
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)

    def image_size(self, name: str) -> tuple[int, int]:
        """Height and width of an image in pixels, from its header; :class:`UserError` names one that is none."""
        width, height = self._opened(name).size
        return height, width

    def _opened(self, name: str) -> Image.Image:
        content = self.read(name)
        try:
            return Image.open(io.BytesIO(content))
        except Exception as error:
            said = "it is of no known kind" if isinstance(error, UnidentifiedImageError) else error
            raise UserError(
                f"{self.source}: the image {name} cannot be read ({said}). Replace it or take it out."
            ) from error

    def below(self, folder: str) -> DataFiles:
        """The files inside ``folder``, by their names below it; "" is all of them."""
        prefix = f"{folder}/" if folder else ""
        sizes = {name.removeprefix(prefix): size for name, size in self.sizes.items() if name.startswith(prefix)}
        return DataFiles(self.source, sizes, lambda name: self.get(prefix + name))

    def around(self, *wanted: str) -> str | None:
        """The folder, nearest to the top, in which all of the ``wanted`` files or folders are; None where none is.

        Raises:
            UserError: several are as near.
        """
        holders: dict[str, set[str]] = {}
        for name in self.sizes:
            parts = name.split("/")
            for depth, part in enumerate(parts):
                if part in wanted:
                    holders.setdefault("/".join(parts[:depth]), set()).add(part)
        found = [folder for folder, inside in holders.items() if inside >= set(wanted)]
        depths = [len(folder.split("/")) if folder else 0 for folder in found]
        nearest = sorted(folder for folder, depth in zip(found, depths, strict=True) if depth == min(depths))
        if len(nearest) > 1:
            raise UserError(f"--data {self.source} holds several data sets: {', '.join(nearest)}. Give one of them.")
        return nearest[0] if nearest else None


def open_files(path: Path) -> DataFiles:
    """List a folder, a ``.zip`` or a ``.tar`` (compressed ones are held in memory, up to 2 GB).

    Hidden files and those that macOS adds to archives are left out.

    Raises:
        UserError: there is nothing at ``path``, a link in it leads nowhere, a folder cannot be listed, or an archive is
            damaged, holds links or names that lead outside.
    """
    if path.is_dir():
        sizes, get = _folder(path)
    elif not path.is_file():
        raise UserError(f"--data {path}: there is no such folder, zip or tar.")
    elif zipfile.is_zipfile(path) and not tarfile.is_tarfile(path):  # a tar that ends with a zip passes for one
        sizes, get = _zip(path)
    else:
        sizes, get = _tar(path)
    return DataFiles(path, {name: size for name, size in sizes.items() if not _is_hidden(name)}, get)


Listed = tuple[dict[str, int], Callable[[str], bytes]]


def _folder(path: Path) -> Listed:
    try:
        sizes = dict(_below(path, "", frozenset()))
    except OSError as error:
        raise UserError(f"--data {path} cannot be listed ({error}).") from error
    return sizes, lambda name: (path / name).read_bytes()


def _below(folder: Path, prefix: str, above: frozenset[str]) -> Iterator[tuple[str, int]]:
    """Names and sizes of regular files, links followed but for those that lead back to a folder ``above``."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in (entry for entry in entries if not _is_hidden(entry.name)):
            if entry.is_dir():
                yield from _below(Path(entry.path), f"{prefix}{entry.name}/", above | {real})
            elif entry.is_file():
                yield prefix + entry.name, entry.stat().st_size
            elif entry.is_symlink() and not os.path.exists(entry.path):
                raise FileNotFoundError(f"{prefix}{entry.name} is a link to nothing")


def _zip(path: Path) -> Listed:
    opened: dict[int, zipfile.ZipFile] = {}

    def archive() -> zipfile.ZipFile:  # one a process: a forked worker would move its parent's place in the file
        if os.getpid() not in opened:
            opened[os.getpid()] = zipfile.ZipFile(path)
        return opened[os.getpid()]

    try:
        members = [info for info in archive().infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"--data {path} is a damaged zip ({error}).") from error
    return _checked(path, ((info.filename, info.file_size) for info in members)), lambda name: archive().read(name)


def _tar(path: Path) -> Listed:
    try:
        with tarfile.open(path, "r:") as archive:
            return _plain_tar(path, archive)
    except tarfile.ReadError:
        pass  # compressed, or no tar at all
    try:
        with tarfile.open(path, "r|*") as archive:
            return _compressed_tar(path, archive)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(f"--data {path} is neither a folder nor a readable zip or tar ({error}).") from error


def _plain_tar(path: Path, archive: tarfile.TarFile) -> Listed:
    members = [(member.name.removeprefix("./"), member) for member in archive if _is_file(path, member)]
    sizes = _checked(path, ((name, member.size) for name, member in members))
    offsets = {name: member.offset_data for name, member in members}

    def get(name: str) -> bytes:
        with path.open("rb") as file:
            file.seek(offsets[name])
            return file.read(sizes[name])

    return sizes, get


def _compressed_tar(path: Path, archive: tarfile.TarFile) -> Listed:
    held: list[tuple[str, bytes]] = []
    total = 0
    for member in archive:
        if not _is_file(path, member):
            continue
        total += member.size
        if total > UNPACKED_BYTES:
            raise UserError(
                f"--data {path} is compressed and holds more than {UNPACKED_BYTES / 2**30:.0f} GB: single files "
                "can be read from a plain tar only. Decompress it (gunzip, unxz), or repack it as a zip."
            )
        content = archive.extractfile(member)
        assert content is not None
        held.append((member.name.removeprefix("./"), content.read()))
    return _checked(path, ((name, len(content)) for name, content in held)), dict(held).__getitem__


def _is_file(path: Path, member: tarfile.TarInfo) -> bool:
    if member.isdir():
        return False
    if not member.isreg() or member.issparse():
        raise UserError(f"--data {path}: {member.name} in it is a link or device, not a plain file. Repack it without.")
    return True


def _checked(path: Path, members: Iterable[tuple[str, int]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, size in members:
        parts = name.split("/")
        if name.startswith("/") or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise UserError(f"--data {path}: the name {name!r} in it leads out of its folder. Repack it without.")
        if name in sizes:
            raise UserError(f"--data {path}: it holds {name} twice. Repack it with one of the two.")
        sizes[name] = size
    return sizes


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def is_image(name: str) -> bool:
    """Whether a file's name ends as an image's does."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def decode_all(files: DataFiles, names: Sequence[str], shape: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Decode images, each through ``shape``; large ones on as many threads as there are cores.

    A data loader's worker is one of several already, and decodes on one thread.
    """

    def decode(name: str) -> Tensor:
        return shape(files.decode(name))

    if get_worker_info() or max(files.sizes[name] for name in names) < THREADED_BYTES:
        return [decode(name) for name in names]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(decode, names))
