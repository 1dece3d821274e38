"""Other people's programs: commands read; run to their end, and not left behind."""

import contextlib
import dataclasses
import re
import shlex
import subprocess
import time
from collections.abc import Sequence

import psutil

from cir_jax.errors import UserError

SHOWN = 200
"""Characters of a line that a program wrote, from its end; more is no reason."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        status: its exit status, minus the signal's number if one ended it; None if it
            was stopped because its time was over.
        seconds: wall time, its start included.
        reason: the last line that it wrote to standard error, or else to standard
            output.
        printed: the last line that it wrote to standard output.
    """

    status: int | None
    seconds: float
    reason: str
    printed: str


def named_command(kind: str, text: str, example: str) -> tuple[str, tuple[str, ...]]:
    """Splits NAME=COMMAND into the name and the command's words.

    Args:
        kind: what errors call it, such as "peer".
        text: what the user gave.
        example: what errors show.

    Raises:
        UserError: there is no name, or the command cannot be split into words.
    """
    name, separator, command = text.partition("=")
    if not separator or re.search(r"[\s{}|]", name):
        raise UserError(
            f"{kind} {text!r} has no name: give NAME=COMMAND, such as {example}, where "
            "NAME has no blanks, braces and bars"
        )
    if not name:
        raise UserError(f"{kind} {text!r} has an empty name: give one, as in {example}")
    try:
        return name, tuple(shlex.split(command))
    except ValueError as error:
        raise UserError(
            f"{kind} {name}: cannot split {command!r} into words ({error}): mend its "
            "quotes"
        ) from error


def refuse_other_braces(
    what: str, words: Sequence[str], placeholder: re.Pattern, allowed: str
) -> None:
    """Refuses a command with braces that are no placeholder.

    Args:
        what: errors call the command so.
        words: the command.
        placeholder: matches all that is filled in.
        allowed: the placeholders, in words.

    Raises:
        UserError: there are some.
    """
    other = re.search(r"\{[^{}]*\}?|\}", placeholder.sub("", " ".join(words)))
    if other:
        raise UserError(
            f"{what}: its command has {other.group()}, but {allowed} are all that is "
            "filled in: put what needs other braces into a script"
        )


def run(words: Sequence[str], timeout: float | None = None) -> Ended:
    """Runs a program, without a shell and with nothing on its standard input.

    Whatever ends the wait, such as Ctrl-C, ends the program and those that it started.

    Args:
        words: the program and its arguments.
        timeout: seconds after which it is stopped; never when None.

    Raises:
        OSError: it is not found or cannot be run.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
            status = process.returncode
        except subprocess.TimeoutExpired as stopped:
            out, err, status = stopped.stdout, stopped.stderr, None
            _kill(process)
        except BaseException:
            _kill(process)
            raise
        seconds = time.perf_counter() - start
    reason = _last_line(err) or _last_line(out) or "it gave no reason"
    return Ended(status, seconds, reason, _last_line(out))


def _kill(process: subprocess.Popen) -> None:
    """Ends a program and those that it started."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for descendant in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()
    psutil.wait_procs(family, timeout=0.2)  # they may still write to files


def _last_line(written: bytes | None) -> str:
    """The end of the last line of what a program wrote, if it wrote any."""
    lines = (written or b"").decode(errors="replace").strip().splitlines()
    return lines[-1][-SHOWN:] if lines else ""
