"""Mixing: several records folders become one, without copying any."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cir_jax.data import manifest
from cir_jax.errors import UserError
from cir_jax.files import sha256
from data_pipelines import job

ALIKE = ("scale", "grey")
"""What the parts of a mix must have in common."""


def mix(parts: Sequence[tuple[int, Path]], out: Path) -> dict[str, Any]:
    """Writes a records folder that stands for several.

    Args:
        parts: how often the records of a folder are in an epoch, and the folder.
        out: a new folder, or one that this very mix was written to.

    Returns:
        The manifest.

    Raises:
        UserError: a part is no finished records folder, itself a mix, given twice, or
            differs from the first in scale or colour; or `out` holds something else.
    """
    job.check_folder(out)
    listed, first = [], None
    for repeat, given in parts:
        folder = given.resolve()
        if repeat < 1:
            raise UserError(f"--add {repeat} {given}: give at least 1")
        if folder == out.resolve():
            raise UserError(f"--add {repeat} {given} is --out: give a new folder there")
        contents = manifest.read_manifest(folder, f"cir encode … --out {given}")
        if "parts" in contents:
            raise UserError(f"--add {repeat} {given} is a mix: name its parts instead")
        first = first or contents
        for name in ALIKE:
            if contents[name] != first[name]:
                raise UserError(
                    f"--add {repeat} {given} has {name}={contents[name]}, but "
                    f"{parts[0][1]} has {name}={first[name]}: encode them alike"
                )
        listed.append(
            {
                "folder": _path_from(out.resolve(), folder),
                "repeat": repeat,
                "sha256": sha256(folder / manifest.NAME),
                "records": contents["records"],
            }
        )
    folders = [part["folder"] for part in listed]
    for (_, given), folder in zip(parts, folders, strict=True):
        if folders.count(folder) > 1:
            raise UserError(f"--add: {given} is given twice: add up its repeats")

    contents = {name: first[name] for name in ALIKE} | {
        "format": manifest.MIX_FORMAT,
        "parts": listed,
        "records": sum(part["repeat"] * part["records"] for part in listed),
    }
    path = out / manifest.NAME
    if out.is_dir() and any(out.iterdir()) and _holds(path) != contents:
        raise UserError(
            f"{out} is not empty: give a new folder as --out, or delete that one first"
        )
    out.mkdir(parents=True, exist_ok=True)
    manifest.write_json(path, contents)
    return contents


def _path_from(mix: Path, folder: Path) -> str:
    """A part's path from the mix, so that both can be moved; absolute if far away."""
    shared = os.path.commonpath([mix, folder])
    return str(folder) if shared == mix.anchor else os.path.relpath(folder, mix)


def _holds(path: Path) -> dict[str, Any] | None:
    """What a manifest says; None if it is not there, or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
