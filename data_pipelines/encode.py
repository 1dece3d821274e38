"""The encode job: a source and a recipe in, a checked records folder out."""

from collections.abc import Sequence
from pathlib import Path

from cir_jax.data.degradations import BLOCK
from cir_jax.data.recipes import Recipe
from cir_jax.errors import UserError, unknown
from data_pipelines import engines, job
from data_pipelines.crops import Crops, PairRecords, RecipeRecords, Records
from data_pipelines.folds import Fold
from data_pipelines.paired_folders import DegradedFolder, find_partners
from data_pipelines.sources import Folder, Source, SourceImage, check_images


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
    fold: Fold | None = None,
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
        fold: which of the source's images are used; all when None.
        workers: writing processes; 0 writes in this process.
        engine: one of `engines.ENGINES`.
        beam_options: see `engines.beam`.

    Returns:
        For every image, crop or partner that was left out, its path and why.

    Raises:
        UserError: the source has no readable image as large as a crop, `out` holds
            records of other settings, the recipe is one for the training reader alone,
            or nothing could be encoded or written.
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
        if degradation.changes_originals and not online:
            raise UserError(
                "the recipe has steps that are kept, which change the originals: put "
                "online: in front of its name, and the training reader runs it"
            )
        degradation.check()

    keys = source.keys()
    used = [key for key in keys if not fold or fold.holds(key)]
    if not used and fold:
        raise UserError(f"no image of {source} is in --fold {fold}: give fewer folds")
    images, left_out = _large_images(source, used, crop)
    records: Records
    if isinstance(degradation, Recipe):
        crops = Crops(tuple(images), crop, stride, scale, grey, step=scale)
        records = RecipeRecords(source, crops, fold, degradation, online, seed)
    else:
        pairs, without_partner = find_partners(
            images, degradation, scale, others=sorted(set(keys) - set(used))
        )
        left_out |= without_partner
        images = [image for image in images if any(pairs.partners[image.path])]
        if not images:
            first = next(iter(without_partner.items()))
            raise UserError(f"no image of {source} has a partner: {': '.join(first)}")
        # Coded as a whole: crops that keep to the grid start where a block does.
        crops = Crops(tuple(images), crop, stride, scale, grey, step=BLOCK * scale)
        records = PairRecords(source, crops, fold, pairs)

    return left_out | job.write(
        records,
        out,
        left_out,
        workers=workers,
        engine=engine,
        beam_options=beam_options,
    )


def _check_out(out: Path, source: Source) -> None:
    """Refuses an output that is a file, or among the images."""
    job.check_folder(out)
    if isinstance(source, Folder) and out.resolve().is_relative_to(source.root):
        raise UserError(
            f"--out {out} lies inside --source {source}, and would be read as images: "
            "give a folder outside"
        )


def _large_images(
    source: Source, keys: Sequence[str], crop: int
) -> tuple[list[SourceImage], dict[str, str]]:
    """The readable images as large as a crop; and why each other is left out."""
    images, left_out = check_images(source, keys, "images")
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
