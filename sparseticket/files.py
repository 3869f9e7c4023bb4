"""Files and folders are written whole or not at all: under a temporary name in the same folder, then renamed."""

import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sparseticket.errors import RunFailure, UserError

ABANDONED = 86_400.0  # seconds without a write


def write_whole(path: Path, content: bytes | str | Callable[[Path], None]) -> None:
    """Write ``content`` (or let a function write it to the path it is given) so that ``path`` is never half there.

    Raises:
        RunFailure: the disk is full, read-only or failing; ``path`` is then as it was before.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(_mode())
        os.replace(temporary, path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield where to make a folder; when the block ends well, it takes the place of ``path``, whatever was there.

    Raises:
        RunFailure: the disk is full, read-only or failing (an OSError in the block); ``path`` is then as it was.
    """
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        new, old = scratch / "new", scratch / "old"  # mkdtemp's own folder can be read by its owner alone
        yield new
        _settle(new)
        _swap(new, path, old)
        _remove_abandoned(path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        if scratch is not None and (path.exists() or not old.exists()):  # never the only copy
            shutil.rmtree(scratch, ignore_errors=True)


def _mode() -> int:
    """Of a new file, as the umask says."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _settle(folder: Path) -> None:
    """Put its files on the disk, with the mode that others have: safetensors writes for the owner alone."""
    mode = _mode()
    for file in files_in(folder):
        file.chmod(mode)
        with file.open("rb") as written:
            os.fsync(written.fileno())


def files_in(folder: Path) -> list[Path]:
    """Every file in a folder and in the folders in it."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refuse_to_lose(folder: Path, ours: Iterable[str]) -> None:
    """Refuse to replace ``folder`` where it holds a file that is none of ``ours`` (paths inside it), nor hidden.

    Raises:
        UserError: names the first such file.
    """
    held = {path.relative_to(folder).as_posix() for path in files_in(folder) if not path.name.startswith(".")}
    if foreign := held - set(ours):
        raise UserError(f"{folder} would be replaced, and {min(foreign)} in it be lost: move that elsewhere first.")


def _swap(new: Path, path: Path, old: Path) -> None:
    try:
        if path.exists():
            path.rename(old)
        new.rename(path)
    except BaseException:  # Ctrl-C between the two as well
        if old.exists() and not path.exists():
            old.rename(path)
        raise


def _remove_abandoned(path: Path) -> None:
    """Remove what a process that was killed made beside ``path``, which is whole: nobody wrote there for a day."""
    begin, end = f".{path.name}.", ".part"
    for left in path.parent.glob(f"{glob.escape(begin)}*{end}"):
        if "." in left.name[len(begin) : -len(end)]:
            continue  # of another folder, whose name begins with this one's
        with suppress(OSError):  # another process may be at the same
            written = max(part.lstat().st_mtime for part in (left, *left.rglob("*")))
            if left.is_dir() and time.time() - written > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


def _not_written(path: Path, error: OSError) -> RunFailure:
    return RunFailure(
        f"could not write {path}: {error.strerror or error}. Nothing that was there has changed; "
        "free some space or choose another folder, then run the same command again to continue."
    )


def cache_folder() -> Path:
    """Where what can be made or fetched again is kept: ``$SPARSETICKET_CACHE``, else the user's cache folder.

    Raises:
        UserError: there is neither, as for a user without a home in a container.
    """
    if chosen := os.environ.get("SPARSETICKET_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "sparseticket"
    except RuntimeError as error:
        raise UserError("you have no home folder to keep files in: name a folder in SPARSETICKET_CACHE.") from error


def report_path(ticket: Path) -> Path:
    """The JSON file beside a ticket that says how it was made."""
    return ticket.with_name(ticket.name + ".json")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole; NaN is refused."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; :class:`UserError` where it cannot be read."""
    advice = "Copy it again, or make it again in a new folder."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is missing or damaged: it cannot be read as JSON ({error}). {advice}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object. {advice}")
    return found
