"""Published data files, fetched once where there is a network, and checked by their published MD5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparseticket.errors import UserError
from sparseticket.files import cache_folder


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The file's name, the last part of its URL."""
        return self.url.rsplit("/", 1)[1]


def fetch(task: str, files: list[Published], *, otherwise: str) -> Path:
    """The folder with ``files``, in the cache (``$SPARSETICKET_CACHE``); what lacks there is downloaded by torchvision.

    Raises:
        UserError: a file cannot be had, or is not the published one; ``otherwise`` says what to do without a network.
    """
    from torchvision.datasets.utils import download_url

    place = cache_folder() / "data" / task
    for file in files:
        try:
            download_url(file.url, place, file.name, file.md5)
        except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a wrong MD5 is a RuntimeError
            raise UserError(f"task {task}: {file.url} could not be fetched ({error}).\n{otherwise}") from error
    return place
