"""What proves a conversion: the network run, and run beside the official one."""

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from cir_jax import image_io, photos
from cir_jax.errors import UserError
from cir_jax.restore import Restorer

SIDE = 128
"""Of the picture, pixels: a multiple of what every network asks for."""
EQUAL = 2e-5
"""Of the largest value: what two float32 programs of one network differ by at most."""


def check(path: Path) -> bool:
    """Restores a small picture that ships, and prints what came out.

    Args:
        path: a weights file of ours.

    Returns:
        Whether all of it is finite.
    """
    image = _picture()
    restored = Restorer(path)(image)
    finite = bool(np.isfinite(restored).all())
    rounded = image_io.to_uint8(np.nan_to_num(restored))
    height, width, _ = restored.shape
    print(
        f"check: coffee, {SIDE}x{SIDE} in, {width}x{height} out, "
        f"min {restored.min():.6f}, mean {restored.mean():.6f}, "
        f"max {restored.max():.6f}, deviation {restored.std():.6f}, sha256 of its "
        f"8 bits {hashlib.sha256(rounded.tobytes()).hexdigest()}"
    )
    if not finite:
        print("check: FAILED, some of it is not finite: the weights are broken")
    return finite


def compare(path: Path, tensors: Mapping[str, np.ndarray], official: str) -> bool:
    """Runs the official PyTorch class beside ours and prints how far they are apart.

    This executes the Python file that is named.

    Args:
        path: a weights file of ours.
        tensors: the official state dict, which the class must take strictly.
        official: FILE.py:CLASS, or FILE.py:CLASS(ARGUMENTS) with literal arguments.

    Returns:
        Whether they are equal but for rounding.

    Raises:
        UserError: torch is missing, or there is no such class, or it fails.
    """
    image = _picture()
    ours = Restorer(path)(image)
    theirs = _official_output(official, tensors, image)
    if theirs.shape != ours.shape:
        raise UserError(
            f"--against {official} gives an image of {theirs.shape}, ours {ours.shape}"
        )
    difference, largest = np.abs(ours - theirs).max(), np.abs(theirs).max()
    equal = bool(difference <= EQUAL * largest)
    verdict = "equal but for rounding" if equal else "NOT equal"
    print(
        f"against {official}: largest difference {difference:.2e}, "
        f"{difference / largest:.2e} of the largest value: {verdict}"
    )
    return equal


def _picture() -> Float32[np.ndarray, "h w 3"]:
    image = image_io.read_rgb(photos.folder("validation") / "coffee.webp")
    return np.float32(image[:SIDE, :SIDE]) / 255


def _official_output(
    official: str, tensors: Mapping[str, np.ndarray], image: np.ndarray
) -> np.ndarray:
    """The official network's output for an image, [h, w, c]."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "--against runs PyTorch, which is not installed: pip install "
            "'cir_jax[convert]'"
        ) from error
    file, _, call = official.partition(":")
    try:
        network = _built(Path(file), call)
        network.load_state_dict(
            {
                # A copy: torch warns of memory that may not be written to.
                name: torch.from_numpy(np.array(_wide(x)))
                for name, x in tensors.items()
            }
        )
        batch = torch.from_numpy(image.transpose(2, 0, 1)[None].copy())
        # UCIP's also wants the codec of each image; ours takes the first as well.
        wanted = inspect.signature(network.forward).parameters.values()
        more = [p for p in wanted if p.default is p.empty][1:]
        with torch.inference_mode():
            output = network.eval()(
                batch, *[torch.zeros(1, dtype=torch.long)] * len(more)
            )
        return output[0].numpy().transpose(1, 2, 0)
    except UserError:
        raise
    except Exception as error:  # whatever someone else's code may raise
        first = (str(error) or "no message").splitlines()[0]
        raise UserError(
            f"--against {official} failed: {type(error).__name__}: {first}"
        ) from error


def _wide(tensor: np.ndarray) -> np.ndarray:
    """Half-precision weights as float32, in which both networks compute."""
    return tensor if tensor.dtype.kind in "iu" else tensor.astype(np.float32)


def _built(file: Path, call: str) -> Any:
    """An object of a class in a Python file: CLASS or CLASS(literal arguments)."""
    try:
        node = ast.parse(call, mode="eval").body
        if isinstance(node, ast.Name):
            node = ast.Call(node, [], [])
        name = node.func.id
        positional = [ast.literal_eval(value) for value in node.args]
        keywords = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
    except (AttributeError, SyntaxError, ValueError) as error:
        raise UserError(
            f"--against {file}:{call}: give it as FILE.py:CLASS or "
            "FILE.py:CLASS(name=value), with values such as 3, True or 'text'"
        ) from error
    if not file.is_file():
        raise UserError(f"--against {file}: there is no such file")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.resolve()))  # for its neighbours' sake
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    if not hasattr(module, name):
        raise UserError(f"--against {file}:{call}: the file has no {name}")
    return getattr(module, name)(*positional, **keywords)
