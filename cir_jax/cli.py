"""The `cir` command: each subcommand calls the module of its name.

An entry point, like main.py, and with it the only place that may import data_pipelines.
Modules are imported by the subcommand that needs them: JAX takes seconds to load.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cir_jax import codecs
from cir_jax.errors import UserError

DONE, SOME_FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


def main() -> None:
    """The console command; bad input exits with 2 and one sentence."""
    try:
        status = run(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = WRONG_USE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Runs one subcommand.

    Returns:
        The exit status: 0 all done, 1 some inputs failed.

    Raises:
        UserError: wrong usage or bad input.
    """
    options = _parser().parse_args(arguments)
    return options.job(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cir", description="Blind restoration of compressed images."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    encode = commands.add_parser("encode", help="make training records")
    encode.set_defaults(job=_encode)
    encode.add_argument(
        "--source",
        default="photos:train",
        help="folder of clean images; default: the photographs that ship",
    )
    encode.add_argument("--recipe", help="preset: which versions each crop gets")
    encode.add_argument("--codec", default="jpeg", help="without --recipe: the codec")
    encode.add_argument("--quality", help="without --recipe: 10,20,30 or 5:95:5")
    encode.add_argument("--out", type=Path, required=True, help="records folder")
    encode.add_argument(
        "--crop", type=int, default=256, help="side of the crops, pixels"
    )
    encode.add_argument("--stride", type=int, help="between crops; default: their side")
    encode.add_argument("--seed", type=int, default=0)
    encode.add_argument("--workers", type=int, default=0, help="writing processes")

    evaluate = commands.add_parser("evaluate", help="measure weights against a codec")
    evaluate.set_defaults(job=_evaluate)
    evaluate.add_argument(
        "--weights", default="none", help="names, files or workdirs, by commas; or none"
    )
    evaluate.add_argument(
        "--set",
        action="append",
        metavar="NAME=DIR",
        help="folder of clean images; may repeat; default: the photographs that ship",
    )
    evaluate.add_argument("--codec", default="jpeg")
    evaluate.add_argument("--quality", default="10,20,30,40", help="10,20 or 5:95:5")
    evaluate.add_argument("--protocol", default="colour", help="colour or gray")
    evaluate.add_argument(
        "--json", type=Path, help="write rows and every image's scores"
    )

    restore = commands.add_parser("restore", help="restore images and folders to PNG")
    restore.set_defaults(job=_restore)
    restore.add_argument("inputs", nargs="+", type=Path, metavar="IN")
    restore.add_argument("-o", "--out", type=Path, required=True, help="output folder")
    restore.add_argument("--weights", required=True, help="a name, file or workdir")
    restore.add_argument("--overwrite", action="store_true")
    return parser


def _encode(options: argparse.Namespace) -> int:
    from data_pipelines import encode, recipes

    if (options.recipe is None) == (options.quality is None):
        raise UserError(
            f"give either --recipe (one of {', '.join(recipes.PRESETS)}) or --quality"
        )
    if options.recipe:
        recipe = recipes.get_recipe(options.recipe)
    else:
        qualities = codecs.parse_qualities(options.quality)
        recipe = recipes.with_qualities(options.codec, qualities)
    left_out = encode.encode(
        options.source,
        recipe,
        options.out,
        crop=options.crop,
        stride=options.stride,
        seed=options.seed,
        workers=options.workers,
    )
    for path, reason in left_out.items():
        print(f"left out: {path}: {reason}", file=sys.stderr)
    print(f"wrote {options.out}")
    return SOME_FAILED if left_out else DONE


def _evaluate(options: argparse.Namespace) -> int:
    from cir_jax import photos, weights
    from cir_jax.data import manifest
    from cir_jax.evaluate import CODEC_ALONE, evaluate, read_set
    from cir_jax.restore import Restorer

    if options.json and not options.json.parent.is_dir():
        raise UserError(f"--json {options.json}: its folder does not exist")
    sets = {}
    for named in options.set or ["photographs=photos:validation"]:
        name, separator, folder = named.partition("=")
        if not separator:
            raise UserError(f"--set {named}: give it as NAME=DIR")
        if name in sets:
            raise UserError(f"--set {named}: the name {name} is given twice")
        sets[name] = read_set(photos.resolve(folder))
    names = [name for name in options.weights.split(",") if name != CODEC_ALONE]
    report = evaluate(
        {name: Restorer(name) for name in names},
        sets,
        options.codec,
        codecs.parse_qualities(options.quality),
        options.protocol,
        {f"sha256 of {name}": weights.sha256(weights.find(name)) for name in names},
    )
    print(report.table())
    if options.json:
        manifest.write_json(options.json, report.to_json())
    return DONE


def _restore(options: argparse.Namespace) -> int:
    from cir_jax.restore import Restorer, restore_files

    restorer = Restorer(options.weights)
    failed = restore_files(restorer, options.inputs, options.out, options.overwrite)
    for reason in failed.values():
        print(f"failed: {reason}", file=sys.stderr)
    return SOME_FAILED if failed else DONE
