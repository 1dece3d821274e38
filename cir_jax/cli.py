"""The `cir` command: each subcommand calls the module of its name.

An entry point, like main.py, and with it the only place that may import data_pipelines.
Modules are imported by the subcommand that needs them: JAX takes seconds to load.
"""

import argparse
import shlex
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from cir_jax import (
    bench_command,
    convert_command,
    evaluate_command,
    identify_command,
    program_cache,
    restore_command,
    weights_command,
)
from cir_jax.arguments import named
from cir_jax.errors import UserError

DONE, SOME_FAILED, WRONG_USE, INTERNAL, INTERRUPTED = 0, 1, 2, 70, 130


def main() -> None:
    """The console command; bad input exits with 2 and one sentence."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: clean up
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names may be any bytes
    program_cache.keep_programs()
    try:
        status = run(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = WRONG_USE
    except OSError as error:  # a full disk, a folder that may not be written
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        status = WRONG_USE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    except Exception:
        traceback.print_exc()
        status = INTERNAL
    sys.exit(status)


def run(words: Sequence[str]) -> int:
    """Runs one subcommand.

    Returns:
        The exit status: 0 all done, 1 some inputs failed.

    Raises:
        UserError: wrong usage or bad input.
    """
    options = _parser().parse_args(words)
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
        help="clean images: a folder, photos:train (default), or a tensorflow-datasets "
        "set, tfds:NAME[/CONFIG][:VERSION][:SPLIT[:FEATURE]]",
    )
    encode.add_argument(
        "--recipe",
        help="which versions each crop gets: a preset or FILE.toml; with online: in "
        "front, made afresh by the training reader",
    )
    encode.add_argument("--codec", default="jpeg", help="without --recipe: the codec")
    encode.add_argument("--quality", help="without --recipe: 10,20,30 or 5:95:5")
    encode.add_argument(
        "--pairs",
        action="append",
        default=[],
        metavar="CODEC:QUALITY=DIR",
        help="instead: degraded images of the same file stems; may repeat; CODEC can "
        "be any name, and QUALITY 0 where there is but one level: haze:0=DIR; ucsr=DIR "
        "takes UCIP's data set as downloaded",
    )
    encode.add_argument(
        "--use",
        action="append",
        default=[],
        metavar="NAME=CODEC",
        help="take another codec for the recipe's, such as hific=command:hific.toml",
    )
    encode.add_argument("--scale", type=int, default=1, help="downscale by, first")
    encode.add_argument(
        "--grey", action="store_true", help="make images grey, for model.channels=1"
    )
    encode.add_argument("--out", type=Path, required=True, help="records folder")
    encode.add_argument(
        "--crop", type=int, default=256, help="side of the clean crops, pixels"
    )
    encode.add_argument("--stride", type=int, help="between crops; default: their side")
    encode.add_argument("--seed", type=int, default=0)
    encode.add_argument(
        "--fold",
        metavar="K/N",
        help="use only the images of fold K of N, chosen by their paths; for cir tiers",
    )
    encode.add_argument("--workers", type=int, default=0, help="writing processes")
    encode.add_argument("--engine", default="local", help="local or beam")
    encode.add_argument(
        "--beam-options",
        default="",
        metavar="FLAGS",
        help="Beam's own, as one text: --beam-options='--runner=… --project=…'",
    )

    mix = commands.add_parser("mix", help="read several records folders as one")
    mix.set_defaults(job=_mix)
    mix.add_argument(
        "--add",
        nargs=2,
        action="append",
        required=True,
        metavar=("REPEAT", "RECORDS"),
        help="how often each record is in an epoch, and the records folder; may repeat",
    )
    mix.add_argument(
        "-o", "--out", type=Path, required=True, help="records folder; copies nothing"
    )

    tiers = commands.add_parser("tiers", help="add restored images to records")
    tiers.set_defaults(job=_tiers)
    tiers.add_argument("folder", type=Path, metavar="RECORDS")
    tiers.add_argument(
        "--weights",
        action="append",
        required=True,
        metavar="[K/N=]WEIGHTS",
        help="a name, file or workdir, and the fold it was trained on; may repeat: "
        "each image is restored by weights of another fold",
    )
    tiers.add_argument("-o", "--out", type=Path, required=True, help="records folder")

    verify = commands.add_parser("verify", help="check every byte of training records")
    verify.set_defaults(job=_verify)
    verify.add_argument("folder", type=Path, metavar="DIR")

    inspect = commands.add_parser("inspect", help="what training records hold")
    inspect.set_defaults(job=_inspect)
    inspect.add_argument("folder", type=Path, metavar="DIR")
    inspect.add_argument(
        "--sheet", type=Path, help="contact sheet; default: DIR/contact_sheet.png"
    )

    evaluate = commands.add_parser("evaluate", help="measure weights against a codec")
    evaluate.set_defaults(job=_evaluate)
    evaluate_command.add_options(evaluate)

    bench = commands.add_parser("bench", help="measure speed and memory")
    bench.set_defaults(job=bench_command.run)
    bench_command.add_options(bench)

    restore = commands.add_parser("restore", help="restore images and folders")
    restore.set_defaults(job=restore_command.run)
    restore_command.add_options(restore)

    identify = commands.add_parser("identify", help="how images were compressed")
    identify.set_defaults(job=identify_command.run)
    identify_command.add_options(identify)

    convert = commands.add_parser("convert", help="port official PyTorch checkpoints")
    convert.set_defaults(job=convert_command.run)
    convert_command.add_options(convert)

    weights = commands.add_parser("weights", help="the weights that ship")
    weights.set_defaults(job=weights_command.run)
    weights_command.add_options(weights)

    export = commands.add_parser("export", help="weights of a training's checkpoint")
    export.set_defaults(job=_export)
    export.add_argument("workdir", type=Path, metavar="WORKDIR")
    export.add_argument(
        "-o", "--out", type=Path, help="default: WORKDIR/step-STEP.safetensors"
    )
    export.add_argument("--step", type=int, help="default: the newest checkpoint's")
    export.add_argument(
        "--storage",
        default="float32",
        help="float32 (default) or float16, which takes half the space",
    )

    compare = commands.add_parser("compare", help="look at versions of pictures")
    compare.set_defaults(job=_compare)
    compare.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="IN",
        help="images, the one before first, then versions of it; or folders of such, "
        "of the same file stems",
    )
    compare.add_argument("-o", "--out", type=Path, required=True, help="sheet, a PNG")
    compare.add_argument(
        "--crops", type=int, default=3, help="of each picture, where it changed most"
    )
    compare.add_argument(
        "--size", type=int, default=64, help="side of the crops, pixels"
    )
    compare.add_argument(
        "--zoom",
        type=int,
        help="of the crops, a whole number; default: what fits, up to 4",
    )
    return parser


def _encode(options: argparse.Namespace) -> int:
    from cir_jax.data import recipes
    from data_pipelines import encode, folds, paired_folders, sources

    if sum(map(bool, (options.recipe, options.quality, options.pairs))) != 1:
        raise UserError(
            f"give one of --recipe (one of {', '.join(recipes.PRESETS)}, or a .toml "
            "file), --quality and --pairs"
        )
    if options.pairs and options.use:
        raise UserError("--use replaces codecs of a recipe: leave it out with --pairs")
    fold = options.fold
    fold = None if fold is None else folds.parse_fold(fold, "--fold")
    replacements = dict(named(text, "--use", "NAME=CODEC") for text in options.use)
    name = (options.recipe or "").removeprefix(recipes.ONLINE)
    left_out_codecs: list[str] = []
    if options.pairs:
        degradation = paired_folders.parse_pairs(options.pairs)
    elif options.recipe:
        degradation, left_out_codecs = recipes.available(
            recipes.get_recipe(name).with_codecs(replacements),
            recipes.OPTIONAL.get(name, ()),
        )
    else:
        text = shlex.join([options.codec, options.quality])
        degradation = recipes.Recipe((text,)).with_codecs(replacements)
    for sentence in left_out_codecs:
        print(f"{name} goes without {sentence}", file=sys.stderr)
    left_out = encode.encode(
        sources.open_source(options.source),
        degradation,
        options.out.resolve(),
        online=name != (options.recipe or ""),
        crop=options.crop,
        stride=options.stride,
        scale=options.scale,
        grey=options.grey,
        seed=options.seed,
        fold=fold,
        workers=options.workers,
        engine=options.engine,
        beam_options=options.beam_options,
    )
    return _written(options.out, left_out)


def _written(out: Path, left_out: Mapping[str, str]) -> int:
    """Says what a records folder has now, and what it lacks."""
    from cir_jax.data import manifest

    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    contents = manifest.read_manifest(out, "cir encode")
    counts = f"{contents['records']} records, {sum(contents['versions'].values())}"
    print(f"wrote {out}: {counts} versions")
    return SOME_FAILED if left_out else DONE


def _mix(options: argparse.Namespace) -> int:
    from data_pipelines.mix import mix

    for repeat, folder in options.add:
        if not repeat.isdecimal():
            raise UserError(
                f"--add {repeat} {folder}: give a whole number, then a records folder"
            )
    parts = [(int(repeat), Path(folder)) for repeat, folder in options.add]
    contents = mix(parts, options.out)
    sizes = (f"{part['repeat']} x {part['records']}" for part in contents["parts"])
    epoch = f"{contents['records']} records an epoch ({' + '.join(sizes)})"
    print(f"wrote {options.out}: {epoch}")
    return DONE


def _tiers(options: argparse.Namespace) -> int:
    from data_pipelines.tiers import make_tiers

    out = options.out.resolve()
    return _written(options.out, make_tiers(options.folder, options.weights, out))


def _verify(options: argparse.Namespace) -> int:
    from data_pipelines.verify import verify

    report = verify(options.folder)
    for damage in report.damages:
        print(damage)
    print(report)
    return SOME_FAILED if report.damages else DONE


def _inspect(options: argparse.Namespace) -> int:
    from data_pipelines.inspect import inspect

    sheet = options.sheet or options.folder / "contact_sheet.png"
    print(inspect(options.folder, sheet))
    print(f"contact sheet: {sheet}")
    return DONE


def _evaluate(options: argparse.Namespace) -> int:
    evaluate_command.run(options)
    return DONE


def _export(options: argparse.Namespace) -> int:
    from cir_jax.export import export

    step, out = export(options.workdir, options.out, options.step, options.storage)
    print(f"averaged weights of step {step}: {out}")
    return DONE


def _compare(options: argparse.Namespace) -> int:
    from cir_jax.compare import compare

    left_out = compare(
        options.inputs,
        options.out,
        crops=options.crops,
        size=options.size,
        zoom=options.zoom,
    )
    for sentence in left_out:
        print(sentence, file=sys.stderr)
    print(f"sheet: {options.out}")
    return DONE
