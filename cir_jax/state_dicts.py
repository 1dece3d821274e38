"""State dicts as people publish them: in three kinds of file, wrapped in many ways."""

import zipfile
import zlib
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cir_jax import torch_file, weights
from cir_jax.errors import UserError
from cir_jax.hyper_parameters import SIGNATURES

ENTRIES = ("params_ema", "params", "state_dict", "model_state_dict", "model")
"""Under which training programs keep a state dict, the most wanted first."""
WRAPPERS = ("module", "net", "model", "_orig_mod")
"""What training wrappers put in front of every name."""
DENSEST = 50
"""Times its size that an .npz may unpack to: weights hardly shrink, bombs do."""


class StateDict(NamedTuple):
    """What was found in a file.

    Attributes:
        tensors: by their names without wrappers.
        taken: which part of the file that is, in words; "" for all of it.
    """

    tensors: dict[str, np.ndarray]
    taken: str


def read(path: Path, entry: str | None = None, drop: tuple[str, ...] = ()) -> StateDict:
    """Reads the state dict in a `.safetensors`, `.npz`, `.pth` or `.pt` file.

    Nothing in the file is executed.

    Args:
        path: the file; what is neither of the first two is taken as PyTorch's.
        entry: which entry of the file holds it; by default the first of `ENTRIES`.
        drop: patterns of names, such as `loss.*`, that are left aside.

    Raises:
        UserError: it cannot be read, is damaged, or holds no state dict.
    """
    found = _taken(_contents(path), entry, path)
    tensors, prefix = without_wrappers(found.tensors)
    dropped = {name for name in tensors if any(fnmatch(name, p) for p in drop)}
    notes = [
        found.taken,
        f"names without {prefix!r}" if prefix else "",
        f"{len(dropped)} tensors dropped as asked" if dropped else "",
    ]
    tensors = {name: x for name, x in tensors.items() if name not in dropped}
    return StateDict(tensors, ", ".join(filter(None, notes)))


def without_wrappers(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], str]:
    """Takes off what wrappers put in front of the names: "module.", "net.", ....

    torch.compile puts its "_orig_mod." in front of parts too; it goes everywhere.

    Returns:
        The tensors, and what was in front of the network's.
    """
    tensors = {name.replace("_orig_mod.", ""): x for name, x in tensors.items()}
    for name in tensors:
        for signature in SIGNATURES:
            prefix = name.removesuffix(signature)
            parts = prefix.split(".")[:-1]
            if prefix != name and parts and set(parts) <= set(WRAPPERS):
                bare = {n.removeprefix(prefix): x for n, x in tensors.items()}
                return bare, prefix
    return tensors, ""


def _contents(path: Path) -> Any:
    if path.suffix == weights.SUFFIX:
        metadata, tensors = weights.read(path)
        if "model" in metadata:
            raise UserError(
                f"{path} is a weights file of cir_jax already: use it as it is, or "
                "give --to-torch for the official layout"
            )
        return tensors
    return _read_npz(path) if path.suffix == ".npz" else torch_file.read(path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            sizes = [info.file_size for info in arrays.zip.infolist()]
            if sum(sizes) > DENSEST * path.stat().st_size:
                raise UserError(
                    f"{path} would unpack to {sum(sizes):,} bytes, more than {DENSEST} "
                    "times its size: weights do not shrink like that, it is no "
                    "checkpoint"
                )
            return dict(arrays)
    except (
        AttributeError,  # np.load gives the array itself of an .npy
        EOFError,
        MemoryError,
        OSError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(f"{path} is not a readable .npz file ({error})") from error


def _taken(contents: Any, entry: str | None, path: Path) -> StateDict:
    """Descends to the tensors, and says past what."""
    steps: list[str] = []
    aside: list[str] = []
    while True:
        contents = _nested(contents)
        asked = [entry] if entry and not steps else ENTRIES
        chosen = next((n for n in asked if isinstance(contents.get(n), Mapping)), None)
        if chosen is None:
            break
        steps.append(chosen)
        aside += [str(name) for name in contents if name != chosen]
        contents = contents[chosen]
    tensors = {n: x for n, x in contents.items() if isinstance(x, np.ndarray)}
    if not tensors or (entry and not steps):
        found = ", ".join(map(str, list(contents)[:10])) or "nothing by a name"
        raise UserError(
            f"{path} holds no tensors under {' or '.join(asked)}; it holds {found}: "
            "name the entry that has them by --entry"
        )
    aside += [str(name) for name in contents if name not in tensors]
    notes = [f"took {' / '.join(map(repr, steps))}"] if steps else []
    notes += [f"left {', '.join(aside)} aside"] if aside else []
    return StateDict(tensors, ", ".join(notes))


def _nested(contents: Any) -> Mapping[str, Any]:
    """A file without nesting has entries as first parts of its names."""
    if not isinstance(contents, Mapping):
        return {}
    pairs = [(*str(name).partition("."), x) for name, x in contents.items()]
    if not all(first in ENTRIES and dot for first, dot, _, _ in pairs):
        return contents
    nested: dict[str, dict[str, Any]] = {}
    for first, _, rest, x in pairs:
        nested.setdefault(first, {})[rest] = x
    return nested
