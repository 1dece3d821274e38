"""The reading pipeline: records in, batches of (degraded, clean) patches out.

Batch i is a pure function of (seed, i): shuffle, choice of version, crop, flips and
batching all happen in a grain `MapDataset`, whose every element depends on its index
alone. So training resumes exactly by starting at the next index, whatever the number
of loader threads, workers or processes; no iterator state is stored.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from jaxtyping import UInt8

from cir_jax.data import records
from cir_jax.data.workers import iterate
from cir_jax.errors import UserError, unknown

BLOCK = 8
"""The side of a JPEG block, pixels of the compressed image."""
GRID_PHASES = ("aligned", "random")


@dataclasses.dataclass(frozen=True)
class PatchPair:
    """A grain transform: one record to one augmented patch pair.

    Args:
        patch: side of the degraded patch in pixels; the clean one is `scale` times it.
        grid_phase: "aligned" cuts where the compressed image's 8x8 blocks start,
            "random" anywhere, so that the network cannot rely on the phase.
        qualities: use the versions of these qualities alone; all when empty.
    """

    patch: int
    grid_phase: str
    qualities: tuple[int, ...]

    def __call__(
        self, payload: bytes, rng: np.random.Generator
    ) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
        """Picks a version and a patch, and one of the 8 flips and rotations."""
        record = records.Record.from_bytes(payload)
        versions = [
            version
            for version in record.versions
            if not self.qualities or version.quality in self.qualities
        ]
        if not versions:
            raise UserError(
                f"the record of {record.source} has no version of quality "
                f"{', '.join(map(str, self.qualities))}: set "
                "config.data.qualities to qualities that were encoded"
            )
        degraded = records.decode(versions[rng.integers(len(versions))].image)
        clean = records.decode(record.clean)
        height, width, _ = degraded.shape
        if min(height, width) < self.patch:
            raise UserError(
                f"the record of {record.source} is {width}x{height} pixels, smaller "
                f"than config.data.patch={self.patch}: encode larger crops or train on "
                "smaller patches"
            )
        step = BLOCK if self.grid_phase == "aligned" else 1
        y = step * rng.integers((height - self.patch) // step + 1)
        x = step * rng.integers((width - self.patch) // step + 1)
        turn = rng.integers(8)

        def cut(image: np.ndarray, scale: int) -> np.ndarray:
            rows = slice(scale * y, scale * (y + self.patch))
            columns = slice(scale * x, scale * (x + self.patch))
            return _turned(image[rows, columns], turn)

        return {"degraded": cut(degraded, 1), "clean": cut(clean, record.scale)}


def _turned(image: np.ndarray, turn: np.integer | int) -> np.ndarray:
    """One of the 8 symmetries of the square: 0..3 rotate, 4..7 mirror and rotate."""
    if turn >= 4:
        image = image[:, ::-1]
    return np.ascontiguousarray(np.rot90(image, turn % 4))


def batches(
    source: Sequence[bytes],
    *,
    seed: int,
    start: int,
    batch_size: int,
    patch: int,
    grid_phase: str,
    qualities: tuple[int, ...] = (),
    workers: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[dict[str, UInt8[np.ndarray, "b _ _ 3"]]]:
    """Yields training batches forever, from global batch number `start` on.

    Args:
        source: random access to serialised records.
        seed: of shuffle, versions, crops and flips.
        start: the number of global batches already consumed.
        batch_size: of the global batch, over all processes.
        patch: side of the degraded patch, pixels.
        grid_phase: see `PatchPair`.
        qualities: see `PatchPair`.
        workers: reading processes; 0 reads in threads of this process.
        process: this process's number; it gets its slice of each global batch.
        processes: how many processes share a global batch.

    Returns:
        An endless iterator of {"degraded": uint8 [b, p, p, 3], "clean": uint8 [b, sp,
        sp, 3]} with b = batch_size / processes.

    Raises:
        UserError: a bad option, now; a damaged record, while iterating.
    """
    if grid_phase not in GRID_PHASES:
        raise unknown("config.data.grid_phase", grid_phase, GRID_PHASES)
    if batch_size % processes:
        raise UserError(
            f"config.batch_size={batch_size} does not divide among {processes} "
            "processes: make it a multiple"
        )
    dataset = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(PatchPair(patch, grid_phase, tuple(qualities)))
        .batch(batch_size // processes)
        # Local batch i * processes + process is this process's part of global batch i.
        .slice(slice(start * processes + process, None, processes))
    )
    return iter(iterate(dataset, workers, ahead=8))
