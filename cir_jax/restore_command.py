"""`cir restore`: its options, and what they mean.

Modules are imported when the command runs: JAX takes seconds to load.
"""

import argparse
import collections
import os
import sys
from pathlib import Path
from typing import Any

from cir_jax.arguments import (
    add_reading_options,
    check_can_write,
    check_is_no_image,
    max_pixels,
)
from cir_jax.errors import UserError, unknown


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument("inputs", nargs="+", type=Path, metavar="IN")
    parser.add_argument("-o", "--out", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--weights",
        default="default",
        help="a name, file or workdir; by commas several, whose mean is taken; "
        "default: those that ship, see cir weights",
    )
    parser.add_argument(
        "--protocol",
        help="promptcir-ntire24: the challenge's padding, tiles and ensemble of all "
        "--weights, officially two; default: ours",
    )
    parser.add_argument(
        "--codec", help="what made the images, for weights that can be told"
    )
    parser.add_argument(
        "--format",
        help="png (default), same as the input, or tiff, jpeg2000, bmp, jpeg, webp, "
        "avif",
    )
    parser.add_argument(
        "--quality", type=int, help="of lossy outputs; default 95, AVIF 90"
    )
    parser.add_argument("--overwrite", action="store_true", help="existing outputs")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, do nothing"
    )
    parser.add_argument("--report", type=Path, help="write what became of each file")
    parser.add_argument(
        "--identify",
        metavar="WEIGHTS",
        help="of a DAGN training: add to the report how each image was compressed",
    )
    parser.add_argument(
        "--strength",
        type=float,
        default=1.0,
        help="how much of the correction is applied, 0 to 1 (default)",
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average over 8 flips and rotations: 8 times as long",
    )
    parser.add_argument(
        "--tile", type=int, help="side of the tiles, pixels; default: what memory holds"
    )
    parser.add_argument(
        "--dinov2", metavar="FILE", help="its weights, for networks that it guides"
    )
    parser.add_argument("--device", help="cpu, gpu, tpu or such as gpu:1")
    parser.add_argument(
        "--precision", default="float32", help="float32 (default) or bfloat16"
    )
    add_reading_options(parser, "restore")


def run(options: argparse.Namespace) -> int:
    """Restores, and says how many of the images.

    Returns:
        The exit status: 0 all done, 1 some images failed.

    Raises:
        UserError: wrong usage or bad input.
    """
    from rich.console import Console

    from cir_jax import restore_files
    from cir_jax.data import manifest

    limit = max_pixels(options.max_megapixels)
    if options.identify and not options.report:
        raise UserError(
            f"--identify {options.identify} adds to the report: give --report FILE too"
        )
    jobs = restore_files.plan(options.inputs, options.out, options.format)
    how = restore_files.Options(
        options.format,
        options.quality,
        options.overwrite,
        limit,
        options.allow_truncated,
    )
    if options.dry_run:
        for target, source in jobs.items():
            note = " (there: skipped)" if how.skips(target) else ""
            print(f"{source} -> {target}{note}")
        return 0
    check_can_write("--report", options.report)
    check_is_no_image("--report", options.report, (*jobs, *jobs.values()))
    restorer = _restorer(options)
    identifier = None
    if options.identify:
        from cir_jax.identify import Identifier

        identifier = Identifier(options.identify, device=options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    if not os.access(options.out, os.W_OK):
        raise UserError(f"the output folder {options.out} may not be written to")
    outcomes: list[restore_files.Outcome] = []
    try:
        console = Console(stderr=True)
        restore_files.restore_files(
            restorer, jobs, how, console, outcomes.append, identifier
        )
    finally:  # also when interrupted
        for outcome in outcomes:
            if outcome.status == "failed":
                print(f"failed: {outcome.reason}", file=sys.stderr)
        counts = collections.Counter(outcome.status for outcome in outcomes)
        kinds = ("restored", "skipped", "failed")
        summary = ", ".join(f"{counts[kind]} {kind}" for kind in kinds)
        print(f"{summary}, of {len(jobs)} images")
        if options.report:
            rows = [outcome.to_json() for outcome in outcomes]
            used = ("weights", "protocol", "strength", "identify")
            settings = {name: getattr(options, name) for name in used}
            manifest.write_json(options.report, settings | {"images": rows})
    return 1 if counts["failed"] else 0


def _restorer(options: argparse.Namespace) -> Any:
    """The restorer that the flags of `cir restore` ask for."""
    from cir_jax import models, ntire24, weights
    from cir_jax.restore import Restorer

    if options.precision not in models.DTYPES:
        raise unknown("precision", options.precision, models.DTYPES)
    dtype = models.DTYPES[options.precision]
    names = options.weights.split(",")
    if options.protocol is not None:
        if options.protocol != ntire24.NAME:
            raise unknown("protocol", options.protocol, [ntire24.NAME])
        ntire24.refuse(
            {
                "--strength": options.strength != 1,
                "--self-ensemble": options.self_ensemble,
                "--tile": options.tile is not None,
                "--dinov2": options.dinov2 is not None,
            }
        )
        return ntire24.Ntire24Restorer(
            weights.load_alike(names, dtype=dtype),
            options.codec,
            device=options.device,
        )
    return Restorer(
        weights.load_average(names, dtype=dtype),
        options.codec,
        tile="default" if options.tile is None else options.tile,
        strength=options.strength,
        self_ensemble=options.self_ensemble,
        device=options.device,
        dinov2=options.dinov2,
    )
