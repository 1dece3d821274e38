"""The reading pipeline: records in, batches of (degraded, clean) patches out.

Batch i is a pure function of (seed, i): shuffle, choice of version, crop, flips and
batching all happen in a grain `MapDataset`, whose every element depends on its index
alone. So training resumes exactly by starting at the next index, whatever the number
of loader threads, workers or processes; no iterator state is stored.
"""

import dataclasses
from collections.abc import Iterator

import grain
import numpy as np
from grain.sources import RandomAccessDataSource

from cir_jax import symmetries
from cir_jax.data import damage, degradations, recipes, records
from cir_jax.data.batching import check_fits, global_batches
from cir_jax.data.degradations import BLOCK
from cir_jax.data.mixes import ByPart, MixedSource
from cir_jax.data.tasks import task_number
from cir_jax.errors import UserError, unknown
from cir_jax.resize import downscale

GRID_PHASES = ("aligned", "random")


@dataclasses.dataclass(frozen=True)
class PatchPair:
    """A grain transform: one record to one augmented patch pair.

    Args:
        patch: side of the degraded patch in pixels; the clean one is `scale` times it.
        grid_phase: "aligned" cuts where the compressed image's 8x8 blocks start,
            "random" anywhere, so that the network cannot rely on the phase.
        qualities: use the versions of these qualities alone; all when empty.
        recipe: degrades the clean crop afresh; None takes the record's versions.
        codecs: names of codecs; the pair then tells which of them it was.
        tasks: names of tasks, see tasks.py; the pair then tells which of them it is of.
        second: whether there is a second patch of the same degraded image, for losses
            that compare patches; drawn by itself, as the first one is.
        other: whether there is the same patch of another version too, by the same codec
            at another quality, for losses that rank them; and both qualities.
    """

    patch: int
    grid_phase: str
    qualities: tuple[int, ...] = ()
    recipe: recipes.Recipe | None = None
    codecs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    second: bool = False
    other: bool = False

    def __call__(
        self, payload: bytes, rng: np.random.Generator
    ) -> dict[str, np.ndarray | np.int32]:
        """Picks a version and a patch, and one of the 8 flips and rotations.

        Returns:
            "degraded" and "clean", uint8 [p, p, 3] and [scale p, scale p, 3]; with
            codecs also "codec", its number among them; with tasks "task", likewise;
            with `second` also "second", uint8 [p, p, 3]; with `other` also "other", the
            same, and "quality" and "other_quality", in the codec's own scale.
        """
        record = records.Record.from_bytes(payload)
        version = None if self.recipe else self._version(record, rng)
        clean = records.decode(record.clean)
        height, width = (side // record.scale for side in clean.shape[:2])
        check_fits(self.patch, record.source, height, width)
        step = BLOCK if self.grid_phase == "aligned" else 1

        def place() -> tuple[int, int]:
            """Where a patch starts, drawn at random."""
            y = step * int(rng.integers((height - self.patch) // step + 1))
            return y, step * int(rng.integers((width - self.patch) // step + 1))

        y, x = place()
        if version:
            label, quality = version.codec, version.quality
            degraded = records.decode(version.image)
        else:
            # The whole crop, as in records: a patch alone would have no surroundings,
            # and a grid of its own.
            chain = self.recipe.draw(rng)
            clean = degradations.original(clean, chain, rng)
            small = downscale(clean, record.scale)
            label, quality = degradations.label(chain), chain[-1].quality
            degraded = degradations.pixels(small, chain, rng)

        def version_beside() -> tuple[np.ndarray, int]:
            """Another version's image and quality; the same, if there is no other."""
            if version:
                others = [
                    each
                    for each in self._versions(record)
                    if each.codec == label and each.quality != quality
                ]
                picked = others[rng.integers(len(others))] if others else version
                return records.decode(picked.image), picked.quality
            others = [
                each
                for each in self.recipe.chains
                if degradations.label(each) == label and each[-1].quality != quality
            ]
            picked = others[rng.integers(len(others))] if others else chain
            return degradations.pixels(small, picked, rng), picked[-1].quality

        turn = rng.integers(8)
        rows = slice(record.scale * y, record.scale * (y + self.patch))
        columns = slice(record.scale * x, record.scale * (x + self.patch))
        pair = {
            "degraded": symmetries.turned(self._cut(degraded, y, x), turn),
            "clean": symmetries.turned(clean[rows, columns], turn),
        }
        if self.codecs:
            pair["codec"] = self._number(label)
        if self.tasks:
            pair["task"] = np.int32(task_number(self.tasks, label, quality))
        if self.second:  # drawn last: without it all else is as with it
            other = self._cut(degraded, *place())
            pair["second"] = symmetries.turned(other, rng.integers(8))
        if self.other:
            other, other_quality = version_beside()
            pair["other"] = symmetries.turned(self._cut(other, y, x), turn)
            pair["quality"] = np.int32(quality)
            pair["other_quality"] = np.int32(other_quality)
        return pair

    def _cut(self, image: np.ndarray, y: int, x: int) -> np.ndarray:
        return image[y : y + self.patch, x : x + self.patch]

    def _number(self, codec: str) -> np.int32:
        """The codec's place among those that the model knows."""
        if codec not in self.codecs:
            raise UserError(
                f"the data has versions by {codec}, the model knows {self.codecs}: "
                "name the codec in config.model.codecs, or encode without it"
            )
        return np.int32(self.codecs.index(codec))

    def _versions(self, record: records.Record) -> list[records.Version]:
        """Those of the record's versions that are used."""
        return [
            version
            for version in record.versions
            if not self.qualities or version.quality in self.qualities
        ]

    def _version(
        self, record: records.Record, rng: np.random.Generator
    ) -> records.Version:
        """One of the record's versions."""
        versions = self._versions(record)
        if not versions:
            wanted = ", ".join(map(str, self.qualities))
            raise UserError(
                f"the record of {record.source} has no version of quality {wanted}: "
                "set config.data.qualities to qualities that were encoded"
            )
        return versions[rng.integers(len(versions))]


def batch_shapes(
    batch_size: int,
    patch: int,
    scale: int,
    *,
    codecs: tuple[str, ...] = (),
    tasks: tuple[str, ...] = (),
    second: bool = False,
    other: bool = False,
) -> dict[str, tuple[tuple[int, ...], type]]:
    """The shape and type of all that is in a batch; arguments as for `batches`."""
    images = {"degraded": patch, "clean": scale * patch}
    images |= {"second": patch} if second else {}
    images |= {"other": patch} if other else {}
    numbers = ["codec"] if codecs else []
    numbers += ["task"] if tasks else []
    numbers += ["quality", "other_quality"] if other else []
    return {
        name: ((batch_size, side, side, 3), np.uint8) for name, side in images.items()
    } | {name: ((batch_size,), np.int32) for name in numbers}


def batches(
    source: RandomAccessDataSource[bytes] | MixedSource,
    *,
    seed: int,
    start: int,
    batch_size: int,
    patch: int,
    grid_phase: str,
    qualities: tuple[int, ...] = (),
    recipe: recipes.Reading = None,
    codecs: tuple[str, ...] = (),
    tasks: tuple[str, ...] = (),
    second: bool = False,
    other: bool = False,
    damaged: int = 0,
    workers: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields training batches forever, from global batch number `start` on.

    Args:
        source: random access to serialised records, or to a mix of such.
        seed: of shuffle, versions, crops and flips.
        start: the number of global batches already consumed.
        batch_size: of the global batch, over all processes.
        patch: side of the degraded patch, pixels.
        grid_phase: see `PatchPair`.
        qualities: see `PatchPair`.
        recipe: see `PatchPair`; for a mix, one of each part.
        codecs: see `PatchPair`.
        tasks: see `PatchPair`.
        second: see `PatchPair`.
        other: see `PatchPair`.
        damaged: how many records may be damaged: each is named once on standard error
            and the next whole one takes its place.
        workers: reading processes; 0 reads in threads of this process.
        process: this process's number; it gets its slice of each global batch.
        processes: how many processes share a global batch.

    Returns:
        An endless iterator of {"degraded": uint8 [b, p, p, 3], "clean": uint8 [b, sp,
        sp, 3]} with b = batch_size / processes; with codecs also "codec": int32 [b],
        with tasks "task": int32 [b], with `second` "second": uint8 [b, p, p, 3], with
        `other` "other": the same, and "quality" and "other_quality": int32 [b].

    Raises:
        UserError: a bad option, now; one damaged record too many, while iterating.
    """
    if grid_phase not in GRID_PHASES:
        raise unknown("config.data.grid_phase", grid_phase, GRID_PHASES)
    each = recipe if isinstance(recipe, tuple) else (recipe,)
    if any(each) and qualities:
        raise UserError(
            f"config.data.qualities={qualities} picks among versions in the records, "
            "and an online recipe makes its own: set it to ()"
        )
    patches = tuple(
        PatchPair(
            patch, grid_phase, tuple(qualities), of_part, codecs, tasks, second, other
        )
        for of_part in each
    )
    pair = ByPart(patches) if isinstance(recipe, tuple) else patches[0]
    elements = (
        grain.MapDataset.source(damage.Replacing(source) if damaged else source)
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(damage.PassedOn(pair) if damaged else pair)
    )
    return global_batches(
        elements,
        source,
        start=start,
        batch_size=batch_size,
        damaged=damaged,
        workers=workers,
        process=process,
        processes=processes,
    )
