"""The job that writes a records folder: begun, gone on with, finished as a whole."""

import collections
import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from cir_jax.data import manifest
from cir_jax.errors import UserError
from data_pipelines import engines
from data_pipelines.crops import Records
from data_pipelines.writer import ShardWriter

PLAN = "plan.json"
"""Written first: what a folder will hold. The manifest, written last, says it does."""
LARGEST_SHARD, SMALLEST_SHARD, FEWEST_SHARDS = 256, 16, 16
"""Records in a shard; small sets are cut finer, so that workers have something each."""
LEFTOVER = ".*.tmp"
"""What a run that was killed leaves behind."""
RESULTS = ("source", "records", "versions", "shards", "left_out")
"""What a manifest has beside the plan."""


def write(
    records: Records,
    out: Path,
    left_out: dict[str, str],
    *,
    workers: int = 0,
    engine: str = "local",
    beam_options: str = "",
) -> dict[str, str]:
    """Writes records; a second run finishes what an interrupted one began.

    Args:
        records: what to write.
        out: the records folder; made if it does not exist.
        left_out: for what was left out already its name and why, for the manifest.
        workers: writing processes; 0 writes in this process.
        engine: one of `engines.ENGINES`.
        beam_options: see `engines.beam`.

    Returns:
        For every record that could not be made its name and why.

    Raises:
        UserError: `out` holds something else or is being written, or nothing could be
            made or written.
    """
    check_folder(out)
    plan = _plan(records)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        _claim(out, plan)
        for leftover in out.glob(LEFTOVER):
            leftover.unlink()
        writer = ShardWriter(records, out, plan["shard_count"])
        if engine == "beam":
            engines.beam(writer, beam_options)
        else:
            console = Console(stderr=True)
            shards, total = engines.local(writer, workers), writer.shards
            for _ in track(shards, "writing shards", total=total, console=console):
                pass
        return _finish(writer, plan, left_out)


def check_folder(out: Path) -> None:
    """Refuses an output that is a file."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")


def _plan(records: Records) -> dict[str, Any]:
    """Everything that decides the records' bytes."""
    total = len(records)
    shard = min(LARGEST_SHARD, max(SMALLEST_SHARD, total // FEWEST_SHARDS))
    return records.describe() | {
        "format": manifest.FORMAT,
        "shard_count": -(-total // shard),
    }


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds a folder, so that no second run clears away what this one is writing.

    Raises:
        UserError: another process holds it.
    """
    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(
            f"another process is writing {out}: wait for it, or give another --out"
        ) from error
    finally:
        os.close(folder)  # and with it the lock


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Marks a folder as this plan's, or refuses one that is another's."""
    path = out / PLAN
    if not path.is_file():
        if any(not path.match(LEFTOVER) for path in out.iterdir()):
            raise UserError(
                f"{out} is not empty: give an empty or a new folder as --out"
            )
        manifest.write_json(path, plan)
        return
    try:
        theirs = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: give another --out, or delete that folder first"
        ) from error
    if theirs != json.loads(json.dumps(plan)):
        raise UserError(
            f"{out} holds records of other images or settings (see its {PLAN}): "
            "give another --out, or delete that folder first"
        )


def _finish(
    writer: ShardWriter, plan: dict[str, Any], left_out: dict[str, str]
) -> dict[str, str]:
    """Gathers the shards' reports into the manifest; returns the failed crops."""
    reports = [writer.report(number) for number in range(writer.shards)]
    failed: dict[str, str] = {}
    versions: collections.Counter[str] = collections.Counter()
    for number, report in enumerate(reports):
        if not report:
            raise UserError(
                f"{writer.path(number)} was not written: --out must be the same folder "
                "for every worker"
            )
        failed |= report.pop("failed")
        versions.update(report.pop("versions"))
    count = sum(report["records"] for report in reports)
    if not count:
        first = next(iter(failed.items()))
        raise UserError(f"no record could be made; the first: {': '.join(first)}")
    found = (writer.records.origin, count, versions, reports, left_out | failed)
    contents = dict(zip(RESULTS, found, strict=True))
    manifest.write_json(writer.folder / manifest.NAME, plan | contents)
    return failed
