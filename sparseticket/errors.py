"""The two ways a command can end badly, each one message and an exit code; what others' errors say in one line."""


class SparseticketError(Exception):
    """A message for the user that says what was wrong and what to do."""

    exit_code = 1


class UserError(SparseticketError):
    """A mistake in what was asked for or given: bad option, missing data, a ticket that does not fit."""

    exit_code = 2


class RunFailure(SparseticketError):
    """Something that broke while working: a full disk, a loss that is not finite, zeros that did not stay zero."""

    exit_code = 1


def reason(error: BaseException) -> str:
    """The first line of what an error says; its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
