"""State dicts as people publish them: in three kinds of file, wrapped in many ways."""

import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cir_jax import torch_file, weights
from cir_jax.errors import UserError
from cir_jax.hyper_parameters import SIGNATURES

ENTRIES = (
    "params_ema",
    "params",
    "state_dict",
    "model_state_dict",
    "model",
    "prompt_learner",
)
"""Under which training programs keep a state dict, the most wanted first."""
WRAPPERS = ("module", "net", "model")
"""What training wrappers put in front of every name."""
COMPILED = "_orig_mod."
"""What torch.compile puts in front of names, and of parts of them."""
DENSEST = 50
"""Times its size that an .npz may unpack to: weights hardly shrink, bombs do."""
LONGEST_NAME = 200
"""Letters; the longest official name has 80."""
MOST_LISTED = 10
"""Names that a message lists."""


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
        entry: which entry of the file holds it, or what its names start with; by
            default the first of `ENTRIES`.
        drop: patterns of names, such as `loss.*`, that are left aside.

    Raises:
        UserError: it cannot be read, is damaged, or holds no state dict.
    """
    found = _taken(_contents(path), entry, path)
    try:
        tensors, prefix = without_wrappers(found.tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    dropped = {name for name in tensors if any(fnmatch(name, p) for p in drop)}
    notes = [
        found.taken,
        f"names without {prefix!r}" if prefix else "",
        f"{len(dropped)} tensors dropped as asked" if dropped else "",
    ]
    tensors = {name: x for name, x in tensors.items() if name not in dropped}
    return StateDict(tensors, ", ".join(filter(None, notes)))


def without_wrappers(
    tensors: Mapping[Any, Any],
) -> tuple[dict[str, np.ndarray], str]:
    """Takes off what wrappers put in front of the names: "module.", "net.", ....

    Args:
        tensors: numpy arrays by their names.

    Returns:
        The tensors, and what was in front of the network's.

    Raises:
        UserError: something else is among them, a name that no network has, two that
            become one, or a network behind a name that is no wrapper's.
    """
    for name, tensor in tensors.items():
        printable = isinstance(name, str) and name.isprintable()
        if not printable or len(name) > LONGEST_NAME:
            raise UserError(
                f"a tensor is called {_some([name])}: expected names such as "
                "'output.weight'"
            )
        if not isinstance(getattr(tensor, "dtype", None), np.dtype):
            raise UserError(f"{name} is no numpy array, but a {type(tensor).__name__}")
    prefix = _prefix(name.replace(COMPILED, "") for name in tensors)
    bare: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        rest = name.replace(COMPILED, "").removeprefix(prefix)
        if rest in bare:
            raise UserError(
                f"{rest} is there twice, with and without a wrapper's {prefix!r} or "
                f"{COMPILED!r}: keep one of the two"
            )
        bare[rest] = tensor
    return bare, prefix


def _prefix(names: Iterable[str]) -> str:
    """What is in front of a network's names; "" also where there is no network."""
    prefixes = dict.fromkeys(
        name.removesuffix(signature)
        for name in names
        for signature in SIGNATURES
        if f".{name}".endswith(f".{signature}")
    )
    if "" in prefixes or not prefixes:
        return ""
    for prefix in prefixes:
        if set(prefix.split(".")[:-1]) <= set(WRAPPERS):
            return prefix
    first = next(iter(prefixes)).removesuffix(".")
    raise UserError(
        f"the names of a network start with {' or '.join(map(repr, prefixes))}: say "
        f"which to take, as in --entry {first}"
    )


def _contents(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == weights.SUFFIX:
        metadata, tensors = weights.read(path)
        if "model" in metadata:
            raise UserError(
                f"{path} is a weights file of cir_jax already: use it as it is, or "
                "give --to-torch for the official layout"
            )
        return tensors
    return _read_npz(path) if suffix == ".npz" else torch_file.read(path)


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
        ArithmeticError,
        EOFError,
        MemoryError,
        OSError,
        RuntimeError,  # encrypted, or compressed in a way that zipfile does not know
        TypeError,  # np.load gives the array itself of an .npy
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(f"{path} is not a readable .npz file ({error})") from error


def _taken(contents: Any, entry: str | None, path: Path) -> StateDict:
    """Descends to the tensors, and says past what."""
    if not isinstance(contents, Mapping):
        tensor = isinstance(contents, np.ndarray)
        raise UserError(
            f"{path} holds one {'tensor' if tensor else type(contents).__name__}, not "
            "tensors by their names: save the network's state_dict()"
        )
    found = _some(list(contents))
    steps: list[str] = []
    aside: list[Any] = []
    wanted = [entry] if entry else []
    while True:
        contents = _nested(contents, wanted)
        names = (*wanted, *ENTRIES)
        chosen = next((n for n in names if isinstance(contents.get(n), Mapping)), None)
        if chosen is None:
            break
        if chosen == entry:
            wanted = []
        steps.append(chosen)
        aside += [name for name in contents if name != chosen]
        contents = contents[chosen]
    tensors = {n: x for n, x in contents.items() if isinstance(x, np.ndarray)}
    if wanted or not tensors:
        raise UserError(
            f"{path} holds no tensors under {' or '.join(wanted or ENTRIES)}; it holds "
            f"{found or 'nothing'}: name the entry that has them by --entry"
        )
    aside += [name for name in contents if name not in tensors]
    notes = [f"took {' / '.join(map(repr, steps))}"] if steps else []
    notes += [f"left {_some(aside)} aside"] if aside else []
    return StateDict(tensors, ", ".join(notes))


def _nested(contents: Mapping[Any, Any], wanted: Sequence[str]) -> Mapping[Any, Any]:
    """A file without nesting has entries as first parts of its names."""
    entries: dict[str, dict[str, Any]] = {}
    others = {}
    for name, value in contents.items():
        starts = (n for n in (*wanted, *ENTRIES) if f"{name}".startswith(f"{n}."))
        if entry := next(starts, None):
            rest = f"{name}".removeprefix(f"{entry}.")
            entries.setdefault(entry, {})[rest] = value
        else:
            others[name] = value
    if others and not any(entry in entries for entry in wanted):
        return contents
    return entries | others


def _some(names: Sequence[Any]) -> str:
    """The first of the names, each of them safe to print and not too long."""
    shown = [f"{name!a:.60}" for name in names[:MOST_LISTED]]
    rest = len(names) - len(shown)
    return ", ".join(shown + ([f"{rest} more"] if rest else []))
