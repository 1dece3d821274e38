"""What went wrong, in one sentence for the person who can mend it."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: the message says what was wrong, where, and what to do.

    The command lines print the message alone, without a traceback, and exit with 2.
    """


def first_line(error: BaseException) -> str:
    """What an error of someone else's says first; its kind where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not among the known ones.

    Args:
        kind: what the name should have been, such as "model" or "config field".
        name: the name that was given.
        known: every name that would have worked.

    Returns:
        An error, to be raised by the caller, that leads with the nearest names.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return UserError(f"unknown {kind} {name!r}: {hint}known are {', '.join(known)}")
