"""Golden numbers: the weights they were made with, and how to look inside a network.

`goldens/X.npz` holds input, output and intermediate outputs ("tap:<module path>") of an
official PyTorch network, `goldens/X.keys.json` its state dict's names and shapes. The
weights were made up from the names, by the rules below.
"""

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from cir_jax.convert import from_state_dict

GOLDENS = Path(__file__).parent / "goldens"


def load(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The arrays of a golden file, and the state dict they were computed with."""
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        return dict(arrays), made_up_weights(keys(name))


def keys(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an official state dict, its integer buffers left out."""
    shapes = json.loads((GOLDENS / f"{name}.keys.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


def made_up_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The state dict of a restorer: each tensor a function of its name and shape."""
    return {key: _made_up(key, shape) for key, shape in shapes.items()}


def _made_up(key: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(key.encode()))
    z = random.standard_normal(shape).astype(np.float32)
    leaf = key.rpartition(".")[2]
    if leaf == "bias":
        return np.float32(0.1) * z
    if leaf == "temperature" or (leaf == "weight" and len(shape) == 1):
        return 1 + np.float32(0.1) * z
    if leaf == "relative_position_bias_table":
        return np.float32(0.5) * z
    if leaf in ("prompt", "prompt_param"):
        return z
    z = z / np.sqrt(np.float32(np.prod(shape[1:])))
    return 3 * z if "offset_layer" in key else z


def load_encoder(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same of a foundation model, whose json holds more than the names."""
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        return dict(arrays), made_up_encoder(encoder_keys(name))


def encoder_keys(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a foundation model's tensors."""
    shapes = json.loads((GOLDENS / f"{name}.keys.json").read_text())["keys"]
    return {key: tuple(shape) for key, shape in shapes.items()}


def made_up_encoder(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The tensors of a foundation model: each a function of its name and shape."""
    return {key: _made_up_of_encoder(key, shape) for key, shape in shapes.items()}


def _made_up_of_encoder(key: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(key.encode()))
    z = np.asarray(random.standard_normal(shape), np.float32)
    leaf = key.rpartition(".")[2]
    if leaf == "bias":
        return np.float32(0.1) * z
    if leaf == "logit_scale":
        return np.array(np.log(1 / 0.07), np.float32)
    if leaf == "lambda1" or (leaf == "weight" and len(shape) == 1):
        return 1 + np.float32(0.1) * z
    embeds = leaf in ("cls_token", "mask_token", "position_embeddings")
    if (embeds or "embedding" in key) and len(shape) <= 3:
        return np.float32(0.5) * z
    return z / np.sqrt(np.float32(np.prod(shape[1:])))


def assert_equals_official(name: str, taps: int, our_path: Callable = str) -> None:
    """Asks that our network equal the official one, at its end and at `taps` modules.

    `our_path` gives our path of an official module.
    """
    goldens, weights = load(name)
    inner = {
        our_path(key.removeprefix("tap:")): value
        for key, value in goldens.items()
        if key.startswith("tap:")
    }
    graph, state = nnx.split(from_state_dict(weights))

    @jax.jit
    def run(state, image, told):
        model = nnx.merge(graph, state)
        with recorded_outputs(model, list(inner)) as outputs:
            return model(image, **told), outputs

    told = {name: goldens[name] for name in ("semantics",) if name in goldens}
    restored, outputs = run(state, goldens["x"], told)
    assert len(outputs) == len(inner) == taps
    for path, expected in inner.items():
        assert_close(np.reshape(outputs[path], expected.shape), expected)
    assert_close(restored, goldens["y"])


@contextlib.contextmanager
def recorded_outputs(
    model: nnx.Module, paths: Sequence[str]
) -> Iterator[dict[str, object]]:
    """While it lasts, keeps what the modules at dotted `paths` return when called."""
    outputs: dict[str, object] = {}
    names = {id(_at(model, path)): path for path in paths}
    classes = {type(_at(model, path)) for path in paths}
    originals = {cls: cls.__call__ for cls in classes}

    def recording(original):
        def call(self, *args, **kwargs):
            output = original(self, *args, **kwargs)
            if id(self) in names:
                outputs[names[id(self)]] = output
            return output

        return call

    try:
        for cls, original in originals.items():
            cls.__call__ = recording(original)
        yield outputs
    finally:
        for cls, original in originals.items():
            cls.__call__ = original


def _at(model: nnx.Module, path: str) -> nnx.Module:
    node = model
    for key in path.split("."):
        node = node[int(key)] if key.isdigit() else getattr(node, key)
    return node


def assert_close(actual, expected, tolerance: float = 2e-5) -> None:
    """Asks that no entry be off by more than `tolerance` of the largest one."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    error = np.max(np.abs(actual - expected)) / np.max(np.abs(expected))
    assert error <= tolerance, f"off by {error:.2e} of the largest value"
