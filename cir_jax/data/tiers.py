"""Three tiers of quality: the same window degraded, briefly restored, and clean.

What a quality perceiver is trained on, from records of `cir tiers`. As for pairs (see
pairs.py) batch i is a pure function of (seed, i); here element i of all is of task
i mod the number of tasks, so batches are balanced over them.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np
from grain.sources import RandomAccessDataSource
from jaxtyping import Int64

from cir_jax.data import damage, recipes, records
from cir_jax.data.batching import check_fits, global_batches
from cir_jax.data.mixes import MixedSource, OfPart
from cir_jax.data.tasks import check_tasks, task_number
from cir_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TierPatch:
    """A grain transform: one number to one augmented window of a task.

    Args:
        source: the records.
        positions: those of them that may have a version of the task.
        patch: side of the window, pixels.
        qualities: use the versions of these qualities alone; all when empty.
        tasks: names of tasks, see tasks.py.
        task: the number of the one that is wanted; without tasks any version is.
        damaged: whether records may be damaged; the next one takes their place.
    """

    source: RandomAccessDataSource[bytes] | MixedSource
    positions: Int64[np.ndarray, " n"]
    patch: int
    qualities: tuple[int, ...]
    tasks: tuple[str, ...]
    task: int
    damaged: bool

    def __call__(
        self, number: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray | np.generic]:
        """Picks a version and a window, and mirrors it left to right, or not.

        Args:
            number: of the record among `positions`; a record without a version of the
                task is passed over for the next one.
            rng: of the choices.

        Returns:
            "tiers", uint8 [3, p, p, 3], from low to high; with tasks also "task"; if
            records may be damaged the position of the first that was passed over for
            that, or -1.
        """
        record, versions, passed = self._next(number)
        version = versions[rng.integers(len(versions))]
        if not version.restored:
            raise UserError(
                f"the record of {record.source} has no restored image beside "
                f"{version.codec} {version.quality}: make the records with `cir tiers`"
            )
        encoded = (version.image, version.restored, record.clean)
        tiers = np.stack([records.decode(image) for image in encoded])
        height, width = tiers.shape[1:3]
        check_fits(self.patch, record.source, height, width)
        y, x = (int(rng.integers(side - self.patch + 1)) for side in (height, width))
        window = tiers[:, y : y + self.patch, x : x + self.patch]
        if rng.integers(2):
            window = window[:, :, ::-1]
        element = {"tiers": np.ascontiguousarray(window)}
        if self.tasks:
            element["task"] = np.int32(self.task)
        if self.damaged:
            element[damage.DAMAGED] = np.int64(passed)
        return element

    def _next(self, number: int) -> tuple[records.Record, list[records.Version], int]:
        """The first record that has versions of the task, and they; from a number on.

        And the position of the first damaged one on the way, or -1.
        """
        passed = -1
        for step in range(len(self.positions)):
            position = int(self.positions[(number + step) % len(self.positions)])
            try:
                payload = self.source[position]
            except UserError:
                if not self.damaged:
                    raise
                passed = position if passed < 0 else passed
                continue
            if isinstance(payload, OfPart):
                payload = payload.payload
            record = records.Record.from_bytes(payload)
            versions = [version for version in record.versions if self._fits(version)]
            if versions:
                return record, versions, passed
        name = f" of task {self.tasks[self.task]}" if self.tasks else ""
        raise UserError(
            f"no record that can be read has a version{name}: run `cir verify` on the "
            "records"
        )

    def _fits(self, version: records.Version) -> bool:
        if self.qualities and version.quality not in self.qualities:
            return False
        return not self.tasks or self.task == task_number(
            self.tasks, version.codec, version.quality
        )


def tier_batches(
    source: RandomAccessDataSource[bytes] | MixedSource,
    contents: Mapping[str, Any],
    *,
    seed: int,
    start: int,
    batch_size: int,
    patch: int,
    qualities: tuple[int, ...] = (),
    tasks: tuple[str, ...] = (),
    damaged: int = 0,
    workers: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of three tiers forever, from global batch number `start` on.

    Args:
        source: records of `cir tiers`, or a mix of such.
        contents: their manifest.
        seed: of shuffle, versions, windows and flips.
        start: the number of global batches already consumed.
        batch_size: of the global batch, over all processes.
        patch: side of the windows, pixels.
        qualities: see `TierPatch`.
        tasks: see `TierPatch`; they take turns.
        damaged: how many records may be damaged: each is named once on standard error
            and the next whole one takes its place.
        workers: reading processes; 0 reads in threads of this process.
        process: this process's number; it gets its slice of each global batch.
        processes: how many processes share a global batch.

    Returns:
        An endless iterator of {"tiers": uint8 [b, 3, p, p, 3]}, from low to high, with
        b = batch_size / processes; with tasks also "task": int32 [b].

    Raises:
        UserError: the records hold no restored images, are not of scale 1, or do not
            fit the tasks, now; one damaged record too many, while iterating.
    """
    parts = contents.get("parts")
    spans = (
        [(source.span(number), part.contents) for number, part in enumerate(parts)]
        if parts
        else [(range(len(source)), contents)]
    )
    for _, of_part in spans:
        if "tiers" not in of_part:
            raise UserError(
                f"the records of {of_part['source']} hold no restored images: make "
                "them with `cir tiers`"
            )
    if contents["scale"] != 1:
        raise UserError(
            f"the records are of scale {contents['scale']}: tiers are compared at the "
            "same size, so encode with --scale 1"
        )
    met = [recipes.kinds(None, of_part, qualities) for _, of_part in spans]
    check_tasks(tasks, set().union(*met))
    streams = []
    for task in range(len(tasks) or 1):
        # Of a mix, the parts that have the task: the others would be passed over whole.
        positions = [
            np.arange(span.start, span.stop)
            for (span, _), kinds in zip(spans, met, strict=True)
            if not tasks or task in {task_number(tasks, *kind) for kind in kinds}
        ]
        transform = TierPatch(
            source,
            np.concatenate(positions),
            patch,
            qualities,
            tasks,
            task,
            damaged > 0,
        )
        # Seeds of their own: with one, tasks would meet the same photographs together.
        (own,) = np.random.SeedSequence((seed, task)).generate_state(1)
        streams.append(
            grain.MapDataset.range(len(transform.positions))
            .seed(int(own))
            .shuffle()
            .repeat()
            .random_map(transform)
        )
    return global_batches(
        grain.MapDataset.mix(streams),
        source,
        start=start,
        batch_size=batch_size,
        damaged=damaged,
        workers=workers,
        process=process,
        processes=processes,
    )
