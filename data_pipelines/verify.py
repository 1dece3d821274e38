"""The check of a records folder: every byte, every image, against the manifest."""

import dataclasses
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from cir_jax.data import manifest, tfrecord
from cir_jax.data.records import Record, decode
from cir_jax.errors import UserError
from cir_jax.files import sha256


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
            f"{read}, damages: {len(self.damages)}; delete the damaged shards and run "
            "the command that made them again"
        )


def verify(folder: Path) -> Report:
    """Reads every record of a folder, decodes every image, compares with the manifest.

    Raises:
        UserError: the folder is no finished records folder.
    """
    contents = manifest.read_manifest(
        folder, "cir encode --source … --out " + str(folder)
    )
    shards = [
        (part.folder / shard["file"], shard, part.contents)
        for part in manifest.parts(folder, contents)
        for shard in part.contents["shards"]
    ]
    damages: list[Damage] = []
    records = versions = 0
    with (
        Progress(console=Console(stderr=True)) as progress,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        total = sum(shard["records"] for _, shard, _ in shards)
        bar = progress.add_task("verifying", total=total)
        for path, shard, of_part in shards:
            name = str(path) if "parts" in contents else path.name
            check = functools.partial(_check_record, path, of_part)
            damaged: list[Damage] = []
            try:
                rows = tfrecord.read_index(path).tolist()
            except UserError as error:
                damages.append(Damage(name, None, str(error)))
                continue
            for (offset, _), found in zip(rows, pool.map(check, rows), strict=True):
                progress.advance(bar)
                if isinstance(found, str):
                    damaged.append(Damage(name, offset, found))
                else:
                    records, versions = records + 1, versions + found
            # What no record shows: bytes between or after them, a shard of other data.
            if len(rows) != shard["records"]:
                reason = f"its index has {len(rows)} records of {shard['records']}"
                damaged.append(Damage(name, None, reason))
            elif not damaged and sha256(path) != shard["sha256"]:
                reason = "its sha256 is not the manifest's"
                damaged.append(Damage(name, None, reason))
            damages += damaged
    return Report(folder, records, versions, damages)


def _check_record(
    shard: Path, contents: dict[str, Any], row: tuple[int, int]
) -> int | str:
    """How many versions a record has, or what is wrong with it."""
    crop, scale = contents["crop"], contents["scale"]
    try:
        record = Record.from_bytes(tfrecord.read_frame(shard, *row))
    except UserError as error:
        return str(error)
    images = {"the clean crop": (record.clean, crop)} | {
        f"version {version.codec} {version.quality}": (version.image, crop // scale)
        for version in record.versions
    }
    images |= {
        f"the restored {version.codec} {version.quality}": (version.restored, crop)
        for version in record.versions
        if version.restored
    }
    for name, (data, side) in images.items():
        try:
            height, width, _ = decode(data).shape
        except (OSError, SyntaxError, ValueError) as error:
            return f"{name} of {record.source} cannot be decoded ({error})"
        if (height, width) != (side, side):
            return f"{name} of {record.source} is {width}x{height} pixels, not {side}"
    return len(record.versions)
