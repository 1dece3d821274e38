"""The encode job: a source and a recipe in, a checked records folder out."""

import collections
import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from cir_jax.data import manifest
from cir_jax.data.degradations import BLOCK
from cir_jax.data.recipes import Recipe
from cir_jax.errors import UserError, unknown
from data_pipelines import engines
from data_pipelines.crops import Crops, PairRecords, RecipeRecords, Records
from data_pipelines.paired_folders import DegradedFolder, find_partners
from data_pipelines.sources import Folder, Source, SourceImage, check_images
from data_pipelines.writer import ShardWriter

PLAN = "plan.json"
"""Written first: what a folder will hold. The manifest, written last, says it does."""
LARGEST_SHARD, SMALLEST_SHARD, FEWEST_SHARDS = 256, 16, 16
"""Records in a shard; small sets are cut finer, so that workers have something each."""
LEFTOVER = ".*.tmp"
"""What a run that was killed leaves behind."""


def encode(
    source: Source,
    degradation: Recipe | Sequence[DegradedFolder],
    out: Path,
    *,
    online: bool = False,
    crop: int = 256,
    stride: int | None = None,
    scale: int = 1,
    grey: bool = False,
    seed: int = 0,
    workers: int = 0,
    engine: str = "local",
    beam_options: str = "",
) -> dict[str, str]:
    """Writes training records; a second run finishes what an interrupted one began.

    Args:
        source: the clean images.
        degradation: which degraded versions each crop gets: a recipe, or the folders
            where they are already.
        out: the records folder; made if it does not exist.
        online: whether the recipe is left to the training reader; records then hold
            the clean crops alone.
        crop: side of the clean crops, pixels.
        stride: distance between crops, pixels; the crop's side when None.
        scale: by how much the clean image is bicubically downscaled before it is
            degraded.
        grey: whether images are made grey first (Y of BT.601 limited range, as the
            protocol "gray"), for networks of one channel.
        seed: of the recipe's random choices.
        workers: writing processes; 0 writes in this process.
        engine: one of `engines.ENGINES`.
        beam_options: see `engines.beam`.

    Returns:
        For every image, crop or partner that was left out, its path and why.

    Raises:
        UserError: the source has no readable image as large as a crop, `out` holds
            records of other settings, or nothing could be encoded or written.
    """
    stride = crop if stride is None else stride
    for name, value, least in (
        ("crop", crop, 1),
        ("stride", stride, 1),
        ("scale", scale, 1),
        ("seed", seed, 0),
        ("workers", workers, 0),
    ):
        if value < least:
            raise UserError(f"--{name} is {value}: give at least {least}")
    if crop % scale:
        raise UserError(f"--crop {crop} is no multiple of --scale {scale}: make it one")
    if engine not in engines.ENGINES:
        raise unknown("engine", engine, engines.ENGINES)
    _check_out(out, source)
    if isinstance(degradation, Recipe):
        degradation.check()

    images, left_out = _large_images(source, crop)
    records: Records
    if isinstance(degradation, Recipe):
        crops = Crops(tuple(images), crop, stride, scale, grey, step=scale)
        records = RecipeRecords(source, crops, degradation, online, seed)
    else:
        pairs, without_partner = find_partners(images, degradation, scale)
        left_out |= without_partner
        images = [image for image in images if any(pairs.partners[image.path])]
        if not images:
            first = next(iter(without_partner.items()))
            raise UserError(f"no image of {source} has a partner: {': '.join(first)}")
        # Coded as a whole: crops that keep to the grid start where a block does.
        crops = Crops(tuple(images), crop, stride, scale, grey, step=BLOCK * scale)
        records = PairRecords(source, crops, pairs)

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
        return left_out | _finish(writer, plan, left_out)


def _check_out(out: Path, source: Source) -> None:
    """Refuses an output that is a file, or among the images."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    if isinstance(source, Folder) and out.resolve().is_relative_to(source.root):
        raise UserError(
            f"--out {out} lies inside --source {source}, and would be read as images: "
            "give a folder outside"
        )


def _large_images(
    source: Source, crop: int
) -> tuple[list[SourceImage], dict[str, str]]:
    """The readable images as large as a crop; and why each other is left out."""
    images, left_out = check_images(source, source.keys(), "images")
    if not images:
        first = next(iter(left_out.values()), "it is empty")
        raise UserError(f"no image of {source} can be read; the first: {first}")
    large = []
    for key, image in images.items():
        if min(image.height, image.width) >= crop:
            large.append(image)
        else:
            size = f"{image.width}x{image.height}"
            left_out[key] = f"is {size} pixels, smaller than the crop"
    if not large:
        raise UserError(
            f"no image of {source} is as large as --crop {crop}: give a smaller crop"
        )
    return large, left_out


def _plan(records: Records) -> dict[str, Any]:
    """Everything that decides the records' bytes."""
    crops = records.crops
    total = len(crops)
    shard = min(LARGEST_SHARD, max(SMALLEST_SHARD, total // FEWEST_SHARDS))
    return records.describe() | {
        "format": manifest.FORMAT,
        "images": [dataclasses.asdict(image) for image in crops.images],
        "crop": crops.crop,
        "stride": crops.stride,
        "scale": crops.scale,
        "grey": crops.grey,
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
            f"another `cir encode` is writing {out}: wait for it, or give another --out"
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
    contents = {
        "source": writer.records.origin,
        "records": count,
        "versions": versions,
        "shards": reports,
        "left_out": left_out | failed,
    }
    manifest.write_json(writer.folder / manifest.NAME, plan | contents)
    return failed
