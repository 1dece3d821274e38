"""The `cir` command: each subcommand calls the module of its name.

An entry point, like main.py, and with it the only place that may import data_pipelines.
Modules are imported by the subcommand that needs them: JAX takes seconds to load.
"""

import argparse
import collections
import datetime
import math
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from cir_jax.errors import UserError, unknown

DONE, SOME_FAILED, WRONG_USE, INTERNAL, INTERRUPTED = 0, 1, 2, 70, 130


def main() -> None:
    """The console command; bad input exits with 2 and one sentence."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: clean up
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names may be any bytes
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
        help="instead: degraded images of the same file stems; may repeat; ucsr=DIR "
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
    encode.add_argument("--workers", type=int, default=0, help="writing processes")
    encode.add_argument("--engine", default="local", help="local or beam")
    encode.add_argument(
        "--beam-options",
        default="",
        metavar="FLAGS",
        help="Beam's own, as one text: --beam-options='--runner=… --project=…'",
    )

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
    evaluate.add_argument(
        "--weights",
        default="none",
        metavar="[NAME=]WEIGHTS",
        help="names, files or workdirs, by commas, and what the table calls them",
    )
    evaluate.add_argument(
        "--set",
        action="append",
        metavar="NAME=DIR",
        help="folder of clean images; may repeat; default: the photographs that ship",
    )
    evaluate.add_argument("--codec", default="jpeg", help="by commas; default: jpeg")
    evaluate.add_argument(
        "--quality",
        action="append",
        help="10,20 or 5:95:5, for all codecs; or once for each; default: 10,20,30,40",
    )
    evaluate.add_argument(
        "--double-jpeg",
        action="store_true",
        help="compress twice, by every pair of qualities, the block grid moved between",
    )
    evaluate.add_argument(
        "--protocol",
        help="colour, gray, y, csr or all-in-one; default: a known set's usual one, "
        "otherwise colour, csr with a scale",
    )
    evaluate.add_argument(
        "--scale", type=int, help="downscale first; default: what the weights restore"
    )
    evaluate.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another program in the table: 'jpegqs=jpegqs -q 6 {in} {out}.jpg'",
    )
    evaluate.add_argument(
        "--lpips", type=Path, metavar="FILE", help="weights of LPIPS, to measure it too"
    )
    evaluate.add_argument(
        "--tile", type=int, help="restore in tiles of this side; default: in one piece"
    )
    evaluate.add_argument("--self-ensemble", action="store_true")
    evaluate.add_argument(
        "--tell-codec",
        action="store_true",
        help="tell the weights which codec it is, if they can be told",
    )
    evaluate.add_argument(
        "--json", type=Path, help="write rows and every image's scores"
    )
    evaluate.add_argument("--csv", type=Path, help="write rows")
    evaluate.add_argument("--markdown", type=Path, help="write what is printed")
    evaluate.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="write sheets of the worst, median and best image, and a plot of the "
        "PSNR by rate",
    )
    evaluate.add_argument(
        "--record", type=Path, metavar="FILE.md", help="add the rows to its table"
    )

    restore = commands.add_parser("restore", help="restore images and folders")
    restore.set_defaults(job=_restore)
    restore.add_argument("inputs", nargs="+", type=Path, metavar="IN")
    restore.add_argument("-o", "--out", type=Path, required=True, help="output folder")
    restore.add_argument(
        "--weights",
        required=True,
        help="a name, file or workdir; by commas several, whose mean is taken",
    )
    restore.add_argument(
        "--codec", help="what made the images, for weights that can be told"
    )
    restore.add_argument(
        "--format",
        help="png (default), same as the input, or tiff, jpeg2000, bmp, jpeg, webp, "
        "avif",
    )
    restore.add_argument(
        "--quality", type=int, help="of lossy outputs; default 95, AVIF 90"
    )
    restore.add_argument("--overwrite", action="store_true", help="existing outputs")
    restore.add_argument(
        "--dry-run", action="store_true", help="say what would be done, do nothing"
    )
    restore.add_argument("--report", type=Path, help="write what became of each file")
    restore.add_argument(
        "--strength",
        type=float,
        default=1.0,
        help="how much of the correction is applied, 0 to 1 (default)",
    )
    restore.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average over 8 flips and rotations: 8 times as long",
    )
    restore.add_argument(
        "--tile", type=int, help="side of the tiles, pixels; default: what memory holds"
    )
    restore.add_argument("--device", help="cpu, gpu, tpu or such as gpu:1")
    restore.add_argument(
        "--precision", default="float32", help="float32 (default) or bfloat16"
    )
    restore.add_argument(
        "--max-megapixels",
        type=float,
        default=300,
        help="refuse larger images; default 300",
    )
    restore.add_argument(
        "--allow-truncated",
        action="store_true",
        help="restore what there is of files that break off",
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
    from cir_jax.data import manifest, recipes
    from data_pipelines import encode, paired_folders, sources

    if sum(map(bool, (options.recipe, options.quality, options.pairs))) != 1:
        raise UserError(
            f"give one of --recipe (one of {', '.join(recipes.PRESETS)}, or a .toml "
            "file), --quality and --pairs"
        )
    if options.pairs and options.use:
        raise UserError("--use replaces codecs of a recipe: leave it out with --pairs")
    replacements = dict(_named(text, "--use", "NAME=CODEC") for text in options.use)
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
        workers=options.workers,
        engine=options.engine,
        beam_options=options.beam_options,
    )
    for path, reason in left_out.items():
        print(f"left out: {path}: {reason}", file=sys.stderr)
    contents = manifest.read_manifest(options.out, "cir encode")
    counts = f"{contents['records']} records, {sum(contents['versions'].values())}"
    print(f"wrote {options.out}: {counts} versions")
    return SOME_FAILED if left_out else DONE


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
    from rich.console import Console

    from cir_jax import compression, files, peers, results, scores, showcase, weights
    from cir_jax.data import manifest
    from cir_jax.evaluate import evaluate
    from cir_jax.restore import Restorer

    if options.scale is not None and options.scale < 1:
        raise UserError(f"--scale is {options.scale}: give at least 1")
    for flag in ("json", "csv", "markdown", "record"):
        _check_can_write(f"--{flag}", getattr(options, flag))
    if options.record:
        results.read(options.record)
    compressions = compression.parse_compressions(
        options.codec, options.quality or ["10,20,30,40"], double=options.double_jpeg
    )
    further, provenance = {}, {}
    if options.lpips:
        from cir_jax.lpips import LPIPS

        further["lpips"] = LPIPS(options.lpips)
        provenance["LPIPS"] = further["lpips"].description
    found = [peers.parse_peer(text) for text in options.peer]
    warnings = [
        f"peer {peer.name} is left out: its program {peer.command[0]} is not installed"
        for peer in found
        if not peer.installed
    ]
    given = [_weights(text) for text in options.weights.split(",")]
    paths = {name: weights.find(path) for name, path in given if path != scores.NONE}
    hashes = {name: files.sha256(path) for name, path in paths.items()}
    sets, complaints = _sets(options.set or ["photographs=photos:validation"])
    methods = {
        name: Restorer(path, tile=options.tile, self_ensemble=options.self_ensemble)
        for name, path in paths.items()
    } | {peer.name: peer for peer in found if peer.installed}
    report = evaluate(
        methods,
        sets,
        compressions,
        options.protocol,
        provenance | {f"sha256 of {name}": text for name, text in hashes.items()},
        options.scale,
        tell_codec=options.tell_codec,
        further=further,
        warnings=[*warnings, *complaints],
        console=Console(stderr=True),
    )
    print(report.table())
    if options.json:
        manifest.write_json(options.json, report.to_json())
    if options.csv:
        files.write_text(options.csv, report.to_csv())
    if options.markdown:
        files.write_text(options.markdown, report.table() + "\n")
    if options.record:
        cards = {
            name: (hashes[name], weights.title(path)) for name, path in paths.items()
        }
        today = datetime.date.today().isoformat()
        results.record(options.record, report, cards, today)
    if options.pictures:
        plots = showcase.write_rate_distortion(options.pictures, report)
        sheets = showcase.write_sheets(
            options.pictures, report, methods, sets, compressions
        )
        for path in (*plots, *sheets):
            print(f"picture: {path}")
    return DONE


def _weights(text: str) -> tuple[str, str]:
    """A method's name and its weights, of "NAME=WEIGHTS" or the weights alone."""
    name, separator, path = text.partition("=")
    return (name, path) if separator and "/" not in name else (text, text)


def _sets(texts: Sequence[str]) -> tuple[dict, list[str]]:
    """The sets of `cir evaluate` by name, and what is unusual about known ones."""
    from cir_jax import photos
    from cir_jax.benchmarks import find_benchmark
    from cir_jax.evaluate import ImageFolder

    sets, complaints = {}, []
    for text in texts:
        name, folder = _named(text, "--set", "NAME=DIR")
        if name in sets:
            raise UserError(f"--set {text}: the name {name} is given twice")
        known, path = find_benchmark(name), photos.resolve(folder)
        sets[name] = ImageFolder(known.folder(path) if known else path)
        if known:
            complaints += known.complaints(sets[name].sizes)
    return sets, complaints


def _restore(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cir_jax import restore_files
    from cir_jax.data import manifest

    if not 0 < options.max_megapixels < math.inf:
        raise UserError(
            f"--max-megapixels {options.max_megapixels}: give a finite number above 0"
        )
    jobs = restore_files.plan(options.inputs, options.out, options.format)
    how = restore_files.Options(
        options.format,
        options.quality,
        options.overwrite,
        round(options.max_megapixels * 1e6),
        options.allow_truncated,
    )
    if options.dry_run:
        for target, source in jobs.items():
            note = " (there: skipped)" if how.skips(target) else ""
            print(f"{source} -> {target}{note}")
        return DONE
    _check_can_write("--report", options.report)
    if options.report and os.path.realpath(options.report) in {
        os.path.realpath(path) for path in (*jobs, *jobs.values())
    }:
        raise UserError(
            f"--report {options.report} is one of the images: give another name"
        )
    restorer = _restorer(options)
    options.out.mkdir(parents=True, exist_ok=True)
    if not os.access(options.out, os.W_OK):
        raise UserError(f"the output folder {options.out} may not be written to")
    outcomes: list[restore_files.Outcome] = []
    try:
        console = Console(stderr=True)
        restore_files.restore_files(restorer, jobs, how, console, outcomes.append)
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
            settings = {"weights": options.weights, "strength": options.strength}
            manifest.write_json(options.report, settings | {"images": rows})
    return SOME_FAILED if counts["failed"] else DONE


def _restorer(options: argparse.Namespace):
    """The restorer that the flags of `cir restore` ask for."""
    from cir_jax import models, weights
    from cir_jax.restore import Restorer

    if options.precision not in models.DTYPES:
        raise unknown("precision", options.precision, models.DTYPES)
    dtype = models.DTYPES[options.precision]
    return Restorer(
        weights.load_average(options.weights.split(","), dtype=dtype),
        options.codec,
        tile="default" if options.tile is None else options.tile,
        strength=options.strength,
        self_ensemble=options.self_ensemble,
        device=options.device,
    )


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


def _check_can_write(flag: str, path: Path | None) -> None:
    """Refuses, before long work, a file that could not be written after it."""
    if path and path.is_dir():
        raise UserError(f"{flag} {path} is a folder: give a file name")
    if path and not path.parent.is_dir():
        raise UserError(f"{flag} {path}: its folder does not exist")
    if path and not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag} {path}: its folder may not be written to")


def _named(text: str, flag: str, form: str) -> tuple[str, str]:
    """Splits a flag's NAME=VALUE."""
    name, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"{flag} {text}: give it as {form}")
    return name, value
