"""The encode job: a source and a recipe in, a checked records folder out."""

import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.progress import track

from cir_jax import codecs, photos
from cir_jax.data import manifest
from cir_jax.errors import UserError
from data_pipelines import engines, sources
from data_pipelines.recipes import CropRecords, Recipe
from data_pipelines.writer import ShardWriter

PLAN = "plan.json"
"""Written first: what a folder will hold. The manifest, written last, says it does."""
RECORDS_PER_SHARD = 256
LEFTOVER = ".*.tmp"
"""What a run that was killed leaves behind."""


def encode(
    source: str,
    recipe: Recipe,
    out: Path,
    *,
    crop: int = 256,
    stride: int | None = None,
    seed: int = 0,
    workers: int = 0,
) -> dict[str, str]:
    """Writes training records; a second run finishes what an interrupted one began.

    Args:
        source: a folder of images, or `photos:train`, the photographs that ship.
        recipe: which compressed versions each crop gets.
        out: the records folder; made if it does not exist.
        crop: side of the clean crops, pixels.
        stride: distance between crops, pixels; the crop's side when None.
        seed: of the recipe's random choices.
        workers: writing processes; 0 writes in this process.

    Returns:
        For every source image that was left out, its path and why.

    Raises:
        UserError: the source has no readable image as large as a crop, or `out` holds
            records of other settings.
    """
    stride = crop if stride is None else stride
    for name, value, least in (
        ("crop", crop, 1),
        ("stride", stride, 1),
        ("seed", seed, 0),
        ("workers", workers, 0),
    ):
        if value < least:
            raise UserError(f"--{name} is {value}: give at least {least}")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    root = photos.resolve(source)
    images, left_out = sources.read_source(root)
    left_out |= {
        image.path: f"is {image.width}x{image.height} pixels, smaller than the crop"
        for image in images
        if min(image.height, image.width) < crop
    }
    records = CropRecords(root, tuple(images), recipe, crop, stride, seed)
    if not len(records):
        raise UserError(
            f"no image of {root} is as large as --crop {crop}: give a smaller crop"
        )
    plan = _plan(records)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, plan)
    for leftover in out.glob(LEFTOVER):
        leftover.unlink()
    writer = ShardWriter(records, out, plan["shard_count"])
    progress = track(
        engines.local(writer, workers),
        "writing shards",
        total=writer.shards,
        console=Console(stderr=True),
    )
    shards = [
        {
            "file": writer.path(number).name,
            "records": len(writer.span(number)),
            "bytes": writer.path(number).stat().st_size,
        }
        for number in progress
    ]
    manifest.write_json(
        out / manifest.NAME,
        plan | {"source": source, "shards": shards, "left_out": left_out},
    )
    return left_out


def _plan(records: CropRecords) -> dict:
    """Everything that decides the records' bytes."""
    names = sorted({name for name, _ in records.recipe.degradations})
    return {
        "format": manifest.FORMAT,
        "images": [dataclasses.asdict(image) for image in records.images],
        "recipe": dataclasses.asdict(records.recipe),
        "codecs": {name: codecs.get_codec(name).version for name in names},
        "crop": records.crop,
        "stride": records.stride,
        "seed": records.seed,
        "records": len(records),
        "shard_count": -(-len(records) // RECORDS_PER_SHARD),
    }


def _claim(out: Path, plan: dict) -> None:
    """Marks a folder as this plan's, or refuses one that is another's."""
    path = out / PLAN
    if not path.is_file():
        if any(not path.match(LEFTOVER) for path in out.iterdir()):
            raise UserError(
                f"{out} is not empty: give an empty or a new folder as --out"
            )
        manifest.write_json(path, plan)
    elif json.loads(path.read_text()) != json.loads(json.dumps(plan)):
        raise UserError(
            f"{out} holds records of other images or settings (see its {PLAN}): "
            "give another --out, or delete that folder first"
        )
