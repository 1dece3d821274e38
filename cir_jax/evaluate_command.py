"""`cir evaluate`: its options, and what they mean.

Modules are imported when the command runs: JAX takes seconds to load.
"""

import argparse
import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cir_jax.arguments import check_can_write, named
from cir_jax.errors import UserError, unknown


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument(
        "--weights",
        default="none",
        metavar="[NAME=]WEIGHTS",
        help="names, files or workdirs, by commas, and what the table calls them; a+b "
        "is the mean of two",
    )
    parser.add_argument(
        "--set",
        action="append",
        metavar="NAME=DIR",
        help="folder of clean images; may repeat; default: the photographs that ship",
    )
    parser.add_argument(
        "--degraded",
        action="append",
        default=[],
        metavar="[SET:]NAME=DIR",
        help="instead of a codec: folder of degraded images of the set's, of the same "
        "file stems or with more after an underscore; once a set",
    )
    parser.add_argument(
        "--codec", help="by commas, noise among them or alone; default: jpeg"
    )
    parser.add_argument(
        "--quality",
        action="append",
        help="10,20 or 5:95:5, for all codecs; or once for each; default: 10,20,30,40, "
        "noise of the deviations 15,25,50",
    )
    parser.add_argument(
        "--double-jpeg",
        action="store_true",
        help="compress twice, by every pair of qualities, the block grid moved between",
    )
    parser.add_argument(
        "--protocol",
        help="colour, gray, y, csr, all-in-one, all-in-one-3 or all-in-one-5; default: "
        "a known set's usual one, otherwise colour, csr with a scale; with "
        "promptcir-ntire24, after a comma or alone, images are restored as the "
        "challenge did, a+b by both checkpoints",
    )
    parser.add_argument(
        "--scale", type=int, help="downscale first; default: what the weights restore"
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another program in the table: 'jpegqs=jpegqs -q 6 {in} {out}.jpg'",
    )
    parser.add_argument(
        "--lpips", type=Path, metavar="FILE", help="weights of LPIPS, to measure it too"
    )
    parser.add_argument(
        "--downstream",
        action="append",
        default=[],
        metavar="NAME[=COMMAND]",
        help="a score of machine vision in the table: keypoints, edges, or 'map=python "
        "detect.py {clean} {images}', which prints its number last; may repeat",
    )
    parser.add_argument(
        "--tile", type=int, help="restore in tiles of this side; default: in one piece"
    )
    parser.add_argument("--self-ensemble", action="store_true")
    parser.add_argument(
        "--dinov2", metavar="FILE", help="its weights, for those networks it guides"
    )
    parser.add_argument(
        "--tell-codec",
        action="store_true",
        help="tell the weights which codec it is, if they can be told",
    )
    parser.add_argument("--json", type=Path, help="write rows and every image's scores")
    parser.add_argument("--csv", type=Path, help="write rows")
    parser.add_argument("--markdown", type=Path, help="write what is printed")
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="write sheets of the worst, median and best image, and a plot of the "
        "PSNR by rate",
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE.md", help="add the rows to its table"
    )


def run(options: argparse.Namespace) -> None:
    """Evaluates, prints the tables and writes the files that are asked for.

    Raises:
        UserError: wrong usage or bad input.
    """
    from rich.console import Console

    from cir_jax import compression, downstream, files, results, showcase, weights
    from cir_jax.evaluate import evaluate

    if options.scale is not None and options.scale < 1:
        raise UserError(f"--scale is {options.scale}: give at least 1")
    _check_outputs(options)
    scorers = downstream.parse_scorers(options.downstream)
    measuring, restoring = _protocols(options)
    compressions = compression.parse_compressions(
        options.codec or "jpeg", options.quality or (), double=options.double_jpeg
    )
    folders = _folders(options.set or ["photographs=photos:validation"])
    partners = _partners(options.degraded, list(folders))
    if partners.keys() == folders.keys():
        _refuse_codecs(options)
    else:
        _check_names(partners, {each.codec_name for each in compressions})
    further, provenance = {}, {}
    if options.lpips:
        from cir_jax.lpips import LPIPS

        further["lpips"] = LPIPS(options.lpips)
        sha256 = files.sha256(options.lpips)
        provenance["LPIPS"] = f"{further['lpips'].description}, sha256 {sha256}"
    peers, warnings = _peers(options.peer)
    paths = _weights(options.weights, taken=peers)
    hashes = {name: [*map(files.sha256, each)] for name, each in paths.items()}
    commands = {name: shlex.join(peer.command) for name, peer in peers.items()}
    for name, each in hashes.items():
        mean = "mean of " if len(each) > 1 and not restoring else ""
        provenance[f"sha256 of {name}"] = mean + " and ".join(each)
    provenance |= {f"peer {name}": command for name, command in commands.items()}
    sets, complaints = _sets(folders, partners)
    methods = {
        name: _restorer(several, restoring, options) for name, several in paths.items()
    } | peers
    report = evaluate(
        methods,
        sets,
        compressions,
        measuring,
        provenance,
        options.scale,
        tell_codec=options.tell_codec,
        further=further,
        scorers=scorers,
        warnings=[*warnings, *complaints],
        console=Console(stderr=True),
    )
    print(report.table())
    _write(options, report)
    if options.record:
        titles = {
            name: "+".join(dict.fromkeys(map(weights.title, several)))
            for name, several in paths.items()
        }
        cards = {
            name: (hashes[name], title, restoring) for name, title in titles.items()
        }
        cards |= {name: ([], command, None) for name, command in commands.items()}
        today = datetime.date.today().isoformat()
        results.record(options.record, report, cards, today)
    if options.pictures:
        plots = showcase.write_rate_distortion(options.pictures, report)
        sheets = showcase.write_sheets(
            options.pictures, report, methods, sets, compressions
        )
        for path in (*plots, *sheets):
            print(f"picture: {path}")


def _protocols(options: argparse.Namespace) -> tuple[str | None, str | None]:
    """What `--protocol` names: how to measure, and how to restore if not as usual."""
    from cir_jax import ntire24
    from cir_jax.protocols import PROTOCOLS

    names = [] if options.protocol is None else options.protocol.split(",")
    for name in names:
        if name not in (*PROTOCOLS, ntire24.NAME):
            raise unknown("protocol", name, (*PROTOCOLS, ntire24.NAME))
    measuring = [name for name in names if name in PROTOCOLS]
    restoring = [name for name in names if name == ntire24.NAME]
    if max(len(measuring), len(restoring)) > 1:
        raise UserError(
            f"--protocol {options.protocol}: give one name of how to measure, and "
            f"{ntire24.NAME} beside it at most"
        )
    if restoring:
        tile = options.tile is not None
        ntire24.refuse({"--self-ensemble": options.self_ensemble, "--tile": tile})
    return next(iter(measuring), None), next(iter(restoring), None)


def _restorer(
    paths: Sequence[Path], protocol: str | None, options: argparse.Namespace
) -> Any:
    """What restores by some weights: by their mean, if no protocol takes each."""
    from cir_jax import ntire24, weights
    from cir_jax.restore import Restorer

    if protocol:
        return ntire24.Ntire24Restorer(paths)
    model = weights.load_average(paths)
    return Restorer(
        model,
        tile=options.tile,
        self_ensemble=options.self_ensemble,
        dinov2=options.dinov2 if model.semantic_dim else None,
    )


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuses, before long work, files that could not be written after it."""
    from cir_jax import results

    for flag in ("json", "csv", "markdown", "record"):
        check_can_write(f"--{flag}", getattr(options, flag))
    if options.record:
        results.read(options.record)
    if options.pictures:
        if options.pictures.exists() and not options.pictures.is_dir():
            raise UserError(f"--pictures {options.pictures} is a file: give a folder")
        check_can_write("--pictures", options.pictures.parent / "folder")


def _write(options: argparse.Namespace, report: Any) -> None:
    """Writes the report's files."""
    from cir_jax import files
    from cir_jax.data import manifest

    if options.json:
        manifest.write_json(options.json, report.to_json())
    if options.csv:
        files.write_text(options.csv, report.to_csv())
    if options.markdown:
        files.write_text(options.markdown, report.table() + "\n")


def _peers(texts: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The peers that are installed, by name, and warnings of those that are not."""
    from cir_jax.peers import parse_peer

    peers = [parse_peer(text) for text in texts]
    warnings = [
        f"peer {peer.name} is left out: its program {peer.command[0]} is not installed"
        for peer in peers
        if not peer.installed
    ]
    return {peer.name: peer for peer in peers if peer.installed}, warnings


def _weights(text: str, taken: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Weights files by what the table calls them: NAME=WEIGHTS, or WEIGHTS alone."""
    from cir_jax import weights
    from cir_jax.scores import BICUBIC, NONE

    paths: dict[str, list[Path]] = {}
    for part in text.split(","):
        if part == NONE:
            continue
        name, separator, path = part.partition("=")
        if not separator or "/" in name:
            name = path = part
        if name in (NONE, BICUBIC, *taken, *paths):
            raise UserError(f"--weights {part}: the name {name} is taken: give another")
        several = [path] if Path(path).exists() else path.split("+")  # c++/a is one
        paths[name] = [weights.find(each) for each in several]
    return paths


def _folders(texts: Sequence[str]) -> dict[str, str]:
    """The folders of `--set` by name."""
    folders: dict[str, str] = {}
    for text in texts:
        name, folder = named(text, "--set", "NAME=DIR")
        if name in folders:
            raise UserError(f"--set {text}: the name {name} is given twice")
        folders[name] = folder
    return folders


def _sets(
    folders: Mapping[str, str], partners: Mapping[str, tuple[str, Path]]
) -> tuple[dict, list[str]]:
    """The sets of `cir evaluate` by name, and what is unusual about known ones."""
    from cir_jax import photos
    from cir_jax.benchmarks import find_benchmark
    from cir_jax.image_sets import ImageFolder, PairedFolder

    sets, complaints = {}, []
    for name, folder in folders.items():
        known, path = find_benchmark(name), photos.resolve(folder)
        sets[name] = ImageFolder(known.folder(path) if known else path)
        if name in partners:
            sets[name] = PairedFolder(sets[name], *partners[name])
        if known:
            complaints += known.complaints(sets[name].sizes)
            complaints += filter(None, [known.caution])
    return sets, complaints


def _partners(texts: Sequence[str], sets: Sequence[str]) -> dict[str, tuple[str, Path]]:
    """What `--degraded` gives, by set: the degradation's name and the folder."""
    partners: dict[str, tuple[str, Path]] = {}
    for text in texts:
        label, folder = named(text, "--degraded", "[SET:]NAME=DIR")
        set_name, _, name = label.rpartition(":")
        if not set_name and len(sets) > 1:
            raise UserError(
                f"--degraded {text}: there are the sets {', '.join(sets)}: give it as "
                "SET:NAME=DIR"
            )
        set_name = set_name or sets[0]
        if set_name not in sets:
            raise unknown("set", set_name, sets)
        if not name:
            raise UserError(f"--degraded {text}: name the degradation, as in haze=DIR")
        if set_name in partners:
            raise UserError(
                f"--degraded {text}: {set_name} has degraded images already: give the "
                "clean ones once more, as a --set of another name"
            )
        partners[set_name] = name, Path(folder)
    return partners


def _refuse_codecs(options: argparse.Namespace) -> None:
    """Refuses what asks for codecs where every set has its degraded images."""
    for flag in ("codec", "quality", "double_jpeg"):
        if getattr(options, flag):
            raise UserError(
                f"--{flag.replace('_', '-')}: every set has degraded images already: "
                "leave it out, or give a --set without"
            )


def _check_names(partners: Mapping[str, tuple[str, Path]], codecs: set[str]) -> None:
    """Refuses degradations that the table could not tell from a codec."""
    for name, folder in partners.values():
        if name in codecs:
            raise UserError(
                f"--degraded {name}={folder}: the table has a codec {name} of its own: "
                "give another name"
            )
