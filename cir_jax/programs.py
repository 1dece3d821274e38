"""Other people's programs: run to their end, timed, and not left behind."""

import contextlib
import dataclasses
import subprocess
import time
from collections.abc import Sequence

import psutil


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        status: its exit status, minus the signal's number if one ended it; None if it
            was stopped because its time was over.
        seconds: wall time, its start included.
        reason: the last line that it wrote to standard error, or else to standard
            output.
    """

    status: int | None
    seconds: float
    reason: str


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
    return Ended(status, seconds, reason)


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
    """The last line of what a program wrote, if it wrote any."""
    lines = (written or b"").decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
