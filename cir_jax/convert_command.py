"""`cir convert`: its options, and what they mean.

Modules are imported when the command runs: JAX takes seconds to load.
"""

import argparse
import ast
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cir_jax.arguments import check_can_write, named
from cir_jax.errors import UserError

OFFICIAL_SUFFIXES = (".pth", ".pt", ".safetensors", ".npz")
"""Of the files that the way back writes."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="official .pth, .pt, .safetensors or .npz; with --to-torch weights of "
        "cir_jax: a name, file or workdir",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        help="default: the checkpoint's path with .safetensors, with --to-torch .pth",
    )
    parser.add_argument("--overwrite", action="store_true", help="an existing output")
    parser.add_argument(
        "--to-torch",
        action="store_true",
        help="the way back: write the official state dict, for strict loaders",
    )
    parser.add_argument(
        "--entry",
        help="the entry that holds the state dict, or what its names start with; "
        "default: params_ema, params, state_dict, ...; with --to-torch: put it there",
    )
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave tensors aside, such as 'loss.*'; may repeat",
    )
    parser.add_argument("--model", help="which network it must be")
    parser.add_argument("--variant", help="with --model: which size of it")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyper-parameter that shapes do not tell: codecs=jpeg,hm,vtm",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="run the network on a small picture and print what it gives",
    )
    parser.add_argument(
        "--against",
        metavar="FILE.py:CLASS",
        help="and compare with the official PyTorch class, which is run: "
        "model.py:PromptIR(decoder=True)",
    )


def run(options: argparse.Namespace) -> int:
    """Converts, and checks where that is asked for.

    Returns:
        The exit status: 1 where a check failed.

    Raises:
        UserError: wrong usage or bad input, and then nothing is written; or the
            official class does not take the weights that were.
    """
    from cir_jax import convert_check

    for flag in ("drop", "model", "variant", "option"):
        if options.to_torch and getattr(options, flag):
            raise UserError(
                f"--{flag} is for official checkpoints: not with --to-torch"
            )
    source = _source(options)
    out = _output(options, source)
    official = None
    if options.against:
        official = convert_check.OfficialNetwork(options.against)
    convert_one = _to_torch if options.to_torch else _from_official
    tensors = convert_one(options, source, out)
    print(f"{'official state dict' if options.to_torch else 'weights'}: {out}")
    if not (options.check or official):
        return 0
    ours = source if options.to_torch else out
    return 0 if convert_check.check(ours, tensors, official) else 1


def _source(options: argparse.Namespace) -> Path:
    """The file to read."""
    from cir_jax import weights

    if options.to_torch:
        return weights.find(options.checkpoint)
    path = Path(options.checkpoint)
    if not path.is_file():
        raise UserError(f"{path} is no file: give an official checkpoint")
    return path


def _output(options: argparse.Namespace, source: Path) -> Path:
    """Where the output goes, refused early if it cannot."""
    from cir_jax import weights

    allowed = OFFICIAL_SUFFIXES if options.to_torch else (weights.SUFFIX,)
    ships = options.to_torch and source in weights.shipped().values()
    out = options.out or Path(source.name if ships else source).with_suffix(allowed[0])
    if out.suffix not in allowed:
        raise UserError(f"-o {out}: give a name that ends in {' or '.join(allowed)}")
    check_can_write("-o", out)
    if os.path.realpath(out) == os.path.realpath(source):
        raise UserError(f"the output {out} is the checkpoint: give another by -o")
    if os.path.lexists(out) and not options.overwrite:
        raise UserError(f"the output {out} exists: give another by -o, or --overwrite")
    return out


def _from_official(
    options: argparse.Namespace, source: Path, out: Path
) -> Mapping[str, Any]:
    """Writes our weights file; returns the official tensors."""
    from cir_jax import convert, files, state_dicts, weights

    asked = _asked(options)
    tensors, taken = state_dicts.read(source, options.entry, tuple(options.drop))
    try:
        config, parameters = convert.from_official(tensors, _config(asked, tensors))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    metadata = {
        "model": json.dumps(config),
        "source": os.fsencode(source.name).decode(errors="backslashreplace"),
        "source_sha256": files.sha256(source),
        "converter": f"cir_jax {importlib.metadata.version('cir_jax')}",
    }
    weights.write(out, parameters, metadata | ({"taken": taken} if taken else {}))
    hyper_parameters = {key: value for key, value in config.items() if key != "name"}
    kinds = " and ".join(sorted({x.dtype.name for x in parameters.values()}))
    size = sum(x.size for x in parameters.values())
    print(f"{config['name']}, {size:,} parameters of {kinds}", end="")
    print(f"; {taken}" if taken else "")
    print(", ".join(f"{key} {value}" for key, value in hyper_parameters.items()))
    return tensors


def _to_torch(
    options: argparse.Namespace, source: Path, out: Path
) -> Mapping[str, Any]:
    """Writes the official state dict; returns its tensors."""
    import numpy as np

    from cir_jax import convert, files, torch_file, weights

    config, parameters = weights.read_parameters(source)
    try:
        tensors = convert.to_official(config, parameters)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    entry = f"{options.entry}." if options.entry else ""
    named_tensors = {entry + name: x for name, x in tensors.items()}
    if out.suffix == weights.SUFFIX:
        weights.write(out, named_tensors, {"format": "pt"})
    elif out.suffix == ".npz":
        if odd := {x.dtype.name for x in tensors.values() if x.dtype.kind == "V"}:
            raise UserError(f"-o {out}: .npz cannot hold {', '.join(odd)}, .pth can")
        with files.written_whole(out) as temporary, temporary.open("wb") as file:
            np.savez(file, **named_tensors)
    else:
        torch_file.write(out, {options.entry: tensors} if entry else tensors)
    return tensors


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags ask of the network."""
    if options.variant and not options.model:
        raise UserError(f"--variant {options.variant} needs --model: of which network?")
    given = dict(named(text, "--option", "NAME=VALUE") for text in options.option)
    asked = {name: _value(text) for name, text in given.items()}
    chosen = {"name": options.model, "variant": options.variant}
    return asked | {name: value for name, value in chosen.items() if value}


def _config(
    asked: Mapping[str, Any], tensors: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """The network as asked for; None where that is left to the tensors."""
    from cir_jax.hyper_parameters import infer_config

    if not asked or "variant" in asked:
        return asked or None
    found = infer_config({name: x.shape for name, x in tensors.items()})
    if asked.get("name") not in (None, found["name"]):
        raise UserError(
            f"it holds {found['name']}, not {asked['name']}: leave --model out"
        )
    return found | asked


def _value(text: str) -> Any:
    """A number, a list by commas, or words as they are."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return list(filter(None, text.split(","))) if "," in text else text
