"""The Hugging Face hub: models without transformers' noise, data sets where the library for them is installed."""

from __future__ import annotations

import socket
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from sparseticket.errors import UserError, reason


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No message and no progress bar from transformers inside the block: errors are raised, not printed."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def is_reachable() -> bool:
    """Whether it makes sense to ask the hub: without a network its client retries for 23 s before it says so."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True  # names are looked up by the proxy; the client finds out
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def load_splits(dataset: str, configuration: str | None, *, otherwise: str) -> Any:
    """All splits of a data set from the hub (or its cache), by name.

    Args:
        dataset: the data set's name on the hub, e.g. "nyu-mll/glue".
        configuration: which of its configurations, e.g. "sst2"; None for the only one.
        otherwise: what the user can do instead, said in the error.

    Raises:
        UserError: the library is not installed, or the data cannot be reached.
    """
    named = dataset + (f" ({configuration})" if configuration else "")
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{named} is read from the Hugging Face hub by a library that is not installed: "
            f'pip install "sparseticket[data]"\n{otherwise}'
        ) from error
    try:
        return datasets.load_dataset(dataset, configuration)
    except Exception as error:
        raise UserError(
            f"{named} could not be read from the Hugging Face hub: {reason(error)}\n"
            f'It needs a network and: pip install "sparseticket[data]"\n{otherwise}'
        ) from error
