"""`cir identify`: its options, and what they mean.

Modules are imported when the command runs: JAX takes seconds to load.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cir_jax.arguments import (
    add_reading_options,
    check_can_write,
    check_is_no_image,
    max_pixels,
)
from cir_jax.errors import UserError, first_line


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="IMAGE", help="files or folders"
    )
    parser.add_argument(
        "--weights",
        help="of a DAGN training, a file or workdir, to estimate codec and quality "
        "from the pixels too",
    )
    parser.add_argument("--json", type=Path, help="write what was found")
    parser.add_argument("--device", help="cpu, gpu, tpu or such as gpu:1")
    add_reading_options(parser, "estimate by")


def run(options: argparse.Namespace) -> int:
    """Prints a line for each image, and writes the JSON that is asked for.

    Returns:
        The exit status: 1 where some images failed.

    Raises:
        UserError: wrong usage, or weights that cannot tell.
    """
    from cir_jax import image_io

    limit = max_pixels(options.max_megapixels)
    check_can_write("--json", options.json)
    found = (image_io.find_inputs(start) for start in options.inputs)
    paths = dict.fromkeys(path for images in found for path in images)
    check_is_no_image("--json", options.json, paths)
    identify = _identify(options, limit)
    rows: list[dict[str, Any]] = []
    try:
        for path in paths:
            try:
                line, row = identify(path)
            except UserError as error:
                print(f"failed: {error}", file=sys.stderr)
                row = {"status": "failed", "reason": str(error)}
            else:
                print(f"{path}: {line}")
                row["status"] = "identified"
            rows.append({"input": str(path)} | row)
    finally:  # also when interrupted
        if options.json:
            from cir_jax.data import manifest

            settings = {"weights": options.weights}
            manifest.write_json(options.json, settings | {"images": rows})
    return 1 if any(row["status"] == "failed" for row in rows) else 0


def _identify(
    options: argparse.Namespace, limit: int
) -> Callable[[Path], tuple[str, dict[str, Any]]]:
    """What tells of an image file, in a few words and for JSON; or raises UserError."""
    from cir_jax.image_headers import read_header

    def says(path: Path) -> tuple[str, dict[str, Any]]:
        header = read_header(path, max_pixels=limit)
        return str(header), header.to_json()

    if options.weights is None:
        print(
            "what the files say, alone: an estimate from pixels needs --weights with a "
            "sensitive encoder, those of a DAGN training (none ship yet)",
            file=sys.stderr,
        )
        return says

    import jax

    from cir_jax import image_io
    from cir_jax.identify import Identifier

    identifier = Identifier(options.weights, device=options.device)

    def says_and_shows(path: Path) -> tuple[str, dict[str, Any]]:
        words, row = says(path)
        picture = image_io.read_picture(
            path, max_pixels=limit, allow_truncated=options.allow_truncated
        )
        try:
            estimate = identifier(picture.pixels)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            raise UserError(
                f"{path} cannot be identified with this memory or device: "
                f"{first_line(error)}"
            ) from error
        return f"{words}; pixels: {estimate}", row | {"estimate": estimate.to_json()}

    return says_and_shows
