"""Weights files: parameters with the model's config, in one `.safetensors` file.

Tensor names are the parameters' attribute paths joined by dots. The file's metadata
holds `model`, the model's whole config as JSON, and whatever provenance was given.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx, traverse_util

from cir_jax.errors import UserError, unknown
from cir_jax.files import written_whole
from cir_jax.models import abstract_model
from cir_jax.weights.shipping import SUFFIX, check_sum, find_shipped, shipped

WORKDIR_NAME = f"weights{SUFFIX}"
"""What training writes into its workdir: the averaged (EMA) weights."""


def find(name_or_path: str | os.PathLike) -> Path:
    """The weights file that is meant: a shipped name, a file, or a workdir's.

    The name "default" stands for those that `cir restore` takes by itself.

    Raises:
        UserError: there is none; says what was looked for.
    """
    if found := find_shipped(str(name_or_path)):
        return found
    path = Path(name_or_path)
    if path.is_dir():
        if not (path / WORKDIR_NAME).is_file():
            raise UserError(
                f"{path} holds no {WORKDIR_NAME}: give a workdir whose training has "
                "reached its first evaluation, or a weights file"
            )
        return path / WORKDIR_NAME
    if not path.is_file():
        names = ", ".join(shipped())
        raise UserError(
            f"weights {str(name_or_path)!r} are neither a file, nor a workdir, nor a "
            f"shipped name (shipped: {names})"
        )
    return path


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict of parameters as {"dotted.path": array}."""
    flat = traverse_util.flatten_dict(params)
    return {".".join(map(str, path)): value for path, value in flat.items()}


def parameters(model: nnx.Module) -> dict[str, np.ndarray]:
    """A model's parameters as {"dotted.path": array}."""
    params = flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return {name: np.asarray(value) for name, value in params.items()}


STORAGES = ("float32", "float16")
"""The types that parameters may be stored in; loaded they are float32 again."""


def save(
    path: Path,
    model: nnx.Module,
    provenance: Mapping[str, str],
    storage: str = "float32",
) -> None:
    """Writes a weights file, whole or not at all.

    Args:
        path: where to.
        model: any model of this package.
        provenance: further metadata, such as the config file and the step.
        storage: one of `STORAGES`.

    Raises:
        UserError: there is no such type, or a parameter is too large for it.
    """
    if storage not in STORAGES:
        raise unknown("storage", storage, STORAGES)
    with np.errstate(over="ignore"):
        stored = {name: x.astype(storage) for name, x in parameters(model).items()}
    for name, x in stored.items():
        if not np.isfinite(x).all():
            raise UserError(f"{name} has numbers that {storage} cannot hold")
    write(path, stored, {"model": json.dumps(model.config), **provenance})


def write(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a `.safetensors` file of any contents, whole or not at all."""
    # Of transposed views the package would write the bytes in the order they lie in.
    whole = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with written_whole(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            safetensors.numpy.save_file(whole, temporary, dict(metadata))
        except safetensors.SafetensorError as error:  # a full disk
            raise OSError(None, str(error), str(path)) from error
        temporary.chmod(mode)  # the package lets nobody but the owner read it


def read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a `.safetensors` file.

    Raises:
        UserError: it cannot be read, or is no such file or a part of one; or see
            `check_sum`.
    """
    try:
        check_sum(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return file.metadata() or {}, tensors
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error})"
        ) from error
    except AttributeError as error:
        raise UserError(
            f"{path} has numbers of a type that NumPy lacks ({error})"
        ) from error


def read_parameters(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The model's config and the parameters, as stored, of a weights file.

    Raises:
        UserError: it cannot be read or does not say which model it is for.
    """
    metadata, tensors = read(path)
    if "model" not in metadata:
        raise UserError(
            f"{path} does not say which model it is for: expected a weights file that "
            "cir_jax wrote"
        )
    try:
        config = json.loads(metadata["model"])
    except (RecursionError, ValueError) as error:
        raise UserError(
            f"{path} is for a model that cannot be built: {error}"
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is for a model that cannot be built: {config}")
    return config, tensors


def load(name_or_path: str | os.PathLike, *, dtype: Any = jnp.float32) -> nnx.Module:
    """Builds the model of a weights file and fills in its parameters.

    Args:
        name_or_path: a shipped name, a `.safetensors` file, or a training's workdir.
        dtype: the compute dtype; parameters stay float32.

    Raises:
        UserError: there is no such file, it is no weights file of this package, or its
            tensors are not those of the model it names.
    """
    path = find(name_or_path)
    config, tensors = read_parameters(path)
    try:
        model = abstract_model(config, dtype=dtype)
    except UserError as error:
        raise UserError(
            f"{path} is for a model that cannot be built: {error}"
        ) from error
    return filled(model, tensors, path)


def title(name_or_path: str | os.PathLike) -> str:
    """A model and its training in a few words, as the file's metadata have them.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    metadata, _ = read(find(name_or_path))
    return title_of(metadata)


def title_of(metadata: Mapping[str, str]) -> str:
    """The same of a weights file's metadata, see `read`."""
    words = [json.loads(metadata["model"])["name"]]
    experiment = json.loads(metadata.get("config", "{}"))
    words.append(experiment.get("model", {}).get("variant", ""))
    words.append(f"step {metadata['step']}" if "step" in metadata else "")
    return " ".join(filter(None, words))


def load_alike(
    names_or_paths: Sequence[str | os.PathLike], *, dtype: Any = jnp.float32
) -> list[nnx.Module]:
    """The models of several files, which differ in their parameters alone.

    Args:
        names_or_paths: one or more, see `load`.
        dtype: the compute dtype.

    Raises:
        UserError: see `load`; or they are of different models.
    """
    models = [load(name, dtype=dtype) for name in names_or_paths]
    for name, model in zip(names_or_paths, models, strict=True):
        if model.config != models[0].config:
            raise UserError(
                f"{names_or_paths[0]} and {name} are weights of different models, "
                "which do not go together: give weights of one model"
            )
    return models


def load_average(
    names_or_paths: Sequence[str | os.PathLike], *, dtype: Any = jnp.float32
) -> nnx.Module:
    """The model whose parameters are the mean of several files' of one model.

    Sense has this for checkpoints of one training (Wortsman et al., "Model soups",
    2203.05482), not for trainings of different seeds.

    Args:
        names_or_paths: one or more, see `load`.
        dtype: the compute dtype.

    Raises:
        UserError: see `load_alike`.
    """
    models = load_alike(names_or_paths, dtype=dtype)
    if len(models) == 1:
        return models[0]
    states = [nnx.state(model, nnx.Param) for model in models]

    def mean(*values: jax.Array) -> np.ndarray:
        """In NumPy, as JAX would compile a program for every shape."""
        return sum(map(np.asarray, values)) / len(values)

    nnx.update(models[0], jax.device_put(jax.tree.map(mean, *states)))
    return models[0]


def filled(
    model: nnx.Module, tensors: Mapping[str, np.ndarray], origin: Path | str
) -> nnx.Module:
    """An abstract model with its parameters, see `fill`."""
    graphdef, params = nnx.split(model, nnx.Param)
    return nnx.merge(graphdef, fill(nnx.to_pure_dict(params), tensors, origin))


def fill(
    abstract: Mapping[str, Any], tensors: Mapping[str, np.ndarray], origin: Path | str
) -> dict[str, Any]:
    """Puts named tensors into the tree of a model's parameters.

    Args:
        abstract: nested dict of the parameters' shapes and dtypes.
        tensors: {"dotted.path": array}; every one must be used.
        origin: where the tensors came from, for the error message.

    Raises:
        UserError: names or shapes differ; lists the differences.
    """
    wanted = {name: value.shape for name, value in flatten(abstract).items()}
    found = {name: value.shape for name, value in tensors.items()}
    if wanted != found:
        differences = [
            f"{name}: model {wanted.get(name, 'has none')}, "
            f"file {found.get(name, 'has none')}"
            for name in sorted(wanted.keys() | found.keys())
            if wanted.get(name) != found.get(name)
        ]
        raise UserError(
            f"{origin} does not fit the model in {len(differences)} of {len(wanted)} "
            f"tensors; the first: {'; '.join(differences[:3])}"
        )

    def leaf(path, value):
        name = ".".join(str(key.key) for key in path)
        return np.array(tensors[name], value.dtype)  # whose memory JAX may take over

    # Not jnp.asarray, which compiles a program for every shape: seconds of them.
    return jax.device_put(jax.tree_util.tree_map_with_path(leaf, abstract))
