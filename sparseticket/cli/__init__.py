"""The command line: one file a verb, and here what they share: how an error ends."""

from __future__ import annotations

import sys
from io import TextIOWrapper

INTERRUPTED = 130


def main() -> None:
    """Run ``sparseticket``. Exit code 2 for a mistake of the user's, 1 for a failure; a traceback only with --debug."""
    from sparseticket.errors import SparseticketError

    _replace_what_cannot_be_shown()
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    from sparseticket.cli.app import app

    try:
        app(arguments)
    except SparseticketError as error:
        if debug:
            raise
        _stop(str(error), error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer makes this of Ctrl-C, and says nothing
            _stop("stopped. Run the same command again to continue.", INTERRUPTED)
        raise
    except OSError as error:
        if debug:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _stop(f"{error.strerror or error}{where}. What was finished is kept; run the same command again.", 1)
    except Exception as error:
        if debug:
            raise
        if "Symlink loop" in str(error):  # Path.resolve's RuntimeError, which has no type of its own
            _stop(f"{error}: a link that leads back to itself names nothing. Give another path.", 2)
        _stop(f"{type(error).__name__}: {error}\nThis was not foreseen; --debug shows where it happened.", 1)


def _replace_what_cannot_be_shown() -> None:
    """A letter that the screen's or a file's encoding does not have is a question mark, and no error after the work."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _stop(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
