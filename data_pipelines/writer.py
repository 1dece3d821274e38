"""Shards: which records go where, and writing one of them."""

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

from cir_jax.data import manifest, tfrecord
from cir_jax.errors import UserError
from cir_jax.files import sha256
from data_pipelines.crops import Records


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Writes shard `number` of a data set; the function that engines map.

    Shards are contiguous ranges of the records, so the bytes of each depend on the
    arguments and its number alone, whoever writes it. A report beside each, written
    last, says what is in it; a shard is finished when its report's checksum is its own.
    """

    records: Records
    folder: Path
    shards: int

    def path(self, number: int) -> Path:
        """Where shard `number` goes."""
        return self.folder / f"records-{number:05d}-of-{self.shards:05d}.tfrecord"

    def span(self, number: int) -> range:
        """The records of shard `number`."""
        total = len(self.records)
        return range(number * total // self.shards, (number + 1) * total // self.shards)

    def report(self, number: int) -> dict[str, Any]:
        """What is in shard `number`, as its writer saw it; empty if it is not there."""
        try:
            return json.loads(report_path(self.path(number)).read_text())
        except (OSError, ValueError):
            return {}

    def is_finished(self, number: int) -> bool:
        """Whether the shard is there, whole, and lacks no record."""
        report, shard = self.report(number), self.path(number)
        return bool(
            report
            and not report["failed"]
            and shard.is_file()
            and tfrecord.index_path(shard).is_file()
            and sha256(shard) == report["sha256"]
        )

    def __call__(self, number: int) -> int:
        """Writes a shard unless it is finished already; returns its number.

        A record that cannot be made is left out and named in the report.

        Raises:
            UserError: the shard cannot be written: a full disk, a read-only folder.
        """
        if self.is_finished(number):
            return number
        shard = self.path(number)
        failed, versions = {}, collections.Counter()
        try:
            report_path(shard).unlink(missing_ok=True)
            with tfrecord.write_shard(shard) as write:
                for index in self.span(number):
                    try:
                        record = self.records.record(index)
                    except UserError as error:
                        failed[self.records.name(index)] = str(error)
                        continue
                    write(record.to_bytes())
                    versions.update(f"{v.codec} {v.quality}" for v in record.versions)
            report = {
                "file": shard.name,
                "records": len(self.span(number)) - len(failed),
                "bytes": shard.stat().st_size,
                "sha256": sha256(shard),
                "versions": versions,
                "failed": failed,
            }
            manifest.write_json(report_path(shard), report)
        except OSError as error:
            raise UserError(
                f"{shard} cannot be written ({error.strerror}): make room for it and "
                "run the same command again; the finished shards are kept"
            ) from error
        return number


def report_path(shard: Path) -> Path:
    """The report that belongs to a shard."""
    return shard.with_name(shard.name + ".json")
