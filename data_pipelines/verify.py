"""The check of a records folder: every byte, every image, against the manifest."""

import dataclasses
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from cir_jax.data import manifest, records, tfrecord
from cir_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Damage:
    """One thing that is wrong."""

    shard: str
    offset: int | None
    """Where its record starts in the shard, bytes; None if it is the whole shard."""
    reason: str

    def __str__(self) -> str:
        where = "" if self.offset is None else f" at offset {self.offset}"
        return f"damaged: {self.shard}{where}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What a check found."""

    folder: Path
    records: int
    versions: int
    damages: list[Damage]

    def __str__(self) -> str:
        read = f"{self.folder}: {self.records} records, {self.versions} versions read"
        if not self.damages:
            return f"{read}, all as the manifest says"
        return (
            f"{read}, {len(self.damages)} damages: delete the damaged shards and run "
            "the same `cir encode` again"
        )


def verify(folder: Path) -> Report:
    """Reads every record of a folder, decodes every image, compares with the manifest.

    Raises:
        UserError: the folder is no finished records folder.
    """
    contents = manifest.read_manifest(
        folder, "cir encode --source … --out " + str(folder)
    )
    damages: list[Damage] = []
    versions: Counter[str] = Counter()
    count = 0
    with (
        Progress(console=Console(stderr=True)) as progress,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        bar = progress.add_task("verifying", total=contents["records"])
        for shard in contents["shards"]:
            path = folder / shard["file"]
            try:
                rows = tfrecord.read_index(path).tolist()
                whole = (
                    []
                    if len(rows) == shard["records"]
                    else [
                        f"its index lists {len(rows)} records, the manifest "
                        f"{shard['records']}"
                    ]
                )
            except UserError as error:
                rows, whole = [], [str(error)]
            checks = pool.map(lambda row: _check(path, row, contents), rows)  # noqa: B023
            found = []
            for (offset, _), result in zip(rows, checks, strict=True):
                progress.advance(bar)
                if isinstance(result, str):
                    found.append(Damage(shard["file"], offset, result))
                else:
                    count += 1
                    versions.update(result)
            if not (found or whole) and path.stat().st_size != shard["bytes"]:
                whole = ["it is longer than its index says"]
            damages += [Damage(shard["file"], None, reason) for reason in whole] + found
    if not damages and versions != Counter(contents["versions"]):
        reason = "its counts of versions are not those of the records"
        damages.append(Damage(manifest.NAME, None, reason))
    return Report(folder, count, versions.total(), damages)


def _check(
    shard: Path, row: tuple[int, int], contents: dict[str, Any]
) -> list[str] | str:
    """The versions of a record by codec and quality, or what is wrong with it."""
    crop, scale = contents["crop"], contents["scale"]
    try:
        record = records.Record.from_bytes(tfrecord.read_frame(shard, *row))
    except UserError as error:
        return str(error)
    images = {"the clean crop": (record.clean, crop)} | {
        f"version {version.codec} {version.quality}": (version.image, crop // scale)
        for version in record.versions
    }
    for name, (data, side) in images.items():
        try:
            height, width, _ = records.decode(data).shape
        except (OSError, SyntaxError, ValueError) as error:
            return f"{name} of {record.source} cannot be decoded ({error})"
        if (height, width) != (side, side):
            return f"{name} of {record.source} is {width}x{height} pixels, not {side}"
    return [f"{version.codec} {version.quality}" for version in record.versions]
