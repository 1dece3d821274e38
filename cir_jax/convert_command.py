"""`cir convert`: its options, and what they mean.

Modules are imported when the command runs: JAX takes seconds to load.
"""

import argparse
import ast
import importlib.metadata
import json
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
        help="default: the checkpoint's name with .safetensors, with --to-torch .pth",
    )
    parser.add_argument("--overwrite", action="store_true", help="an existing output")
    parser.add_argument(
        "--to-torch",
        action="store_true",
        help="the way back: write the official state dict, for strict loaders",
    )
    parser.add_argument(
        "--entry",
        help="the entry that holds the state dict; default: params_ema, params, "
        "state_dict, ...; with --to-torch: put it under this one",
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
        UserError: wrong usage or bad input; nothing is written then.
    """
    from cir_jax import convert_check

    out = _output(options)
    convert_one = _to_torch if options.to_torch else _from_official
    ours, tensors = convert_one(options, out)
    print(f"{'official state dict' if options.to_torch else 'weights'}: {out}")
    fine = True
    if options.check or options.against:
        fine = convert_check.check(ours)
    if options.against:
        fine &= convert_check.compare(ours, tensors, options.against)
    return 0 if fine else 1


def _output(options: argparse.Namespace) -> Path:
    """Where the output goes, refused early if it cannot."""
    allowed = OFFICIAL_SUFFIXES if options.to_torch else (".safetensors",)
    source = Path(options.checkpoint)
    out = options.out or source.with_suffix(allowed[0])
    if out.suffix not in allowed:
        raise UserError(f"-o {out}: give a name that ends in {' or '.join(allowed)}")
    check_can_write("-o", out)
    if out.resolve() == source.resolve():
        raise UserError(f"the output {out} is the checkpoint: give another by -o")
    if out.exists() and not options.overwrite:
        raise UserError(f"the output {out} exists: give another by -o, or --overwrite")
    return out


def _from_official(
    options: argparse.Namespace, out: Path
) -> tuple[Path, Mapping[str, Any]]:
    from cir_jax import convert, files, state_dicts, weights

    path = Path(options.checkpoint)
    if not path.is_file():
        raise UserError(f"{path} is no file: give an official checkpoint")
    tensors, taken = state_dicts.read(path, options.entry, tuple(options.drop))
    config, parameters = convert.from_official(tensors, _config(options, tensors))
    metadata = {
        "model": json.dumps(config),
        "source": path.name,
        "source_sha256": files.sha256(path),
        "converter": f"cir_jax {importlib.metadata.version('cir_jax')}",
    }
    weights.write(out, parameters, metadata | ({"taken": taken} if taken else {}))
    hyper_parameters = {key: value for key, value in config.items() if key != "name"}
    kinds = " and ".join(sorted({x.dtype.name for x in parameters.values()}))
    size = sum(x.size for x in parameters.values())
    print(f"{config['name']}, {size:,} parameters of {kinds}", end="")
    print(f"; {taken}" if taken else "")
    print(", ".join(f"{key} {value}" for key, value in hyper_parameters.items()))
    return out, tensors


def _to_torch(options: argparse.Namespace, out: Path) -> tuple[Path, Mapping[str, Any]]:
    import numpy as np

    from cir_jax import convert, files, torch_file, weights

    ours = weights.find(options.checkpoint)
    config, parameters = weights.read_parameters(ours)
    tensors = convert.to_official(config, parameters)
    entry = f"{options.entry}." if options.entry else ""
    if out.suffix == ".safetensors":
        named_tensors = {entry + name: x for name, x in tensors.items()}
        weights.write(out, named_tensors, {"format": "pt"})
    elif out.suffix == ".npz":
        with files.written_whole(out) as temporary, temporary.open("wb") as file:
            np.savez(file, **{entry + name: x for name, x in tensors.items()})
    else:
        torch_file.write(out, {options.entry: tensors} if entry else tensors)
    return ours, tensors


def _config(
    options: argparse.Namespace, tensors: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The network that the flags ask for; None where they leave it to the tensors."""
    from cir_jax.hyper_parameters import infer_config

    if options.variant and not options.model:
        raise UserError(f"--variant {options.variant} needs --model: of which network?")
    given = dict(named(text, "--option", "NAME=VALUE") for text in options.option)
    changes = {name: _value(text) for name, text in given.items()}
    if options.variant:
        return {"name": options.model, "variant": options.variant, **changes}
    if not options.model and not changes:
        return None
    found = infer_config({name: x.shape for name, x in tensors.items()})
    if options.model not in (None, found["name"]):
        raise UserError(
            f"{options.checkpoint} holds {found['name']}, not {options.model}: leave "
            "--model out"
        )
    return found | changes


def _value(text: str) -> Any:
    """A number, a list by commas, or words as they are."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text.split(",") if "," in text else text
