"""What proves a conversion: the network run, and run beside the official one."""

import ast
import contextlib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from cir_jax import image_io, photos, weights
from cir_jax.errors import UserError
from cir_jax.restore import Restorer

SIDE = 128
"""Of the picture, pixels: a multiple of what every network asks for."""
EQUAL = 2e-5
"""Of the largest value: what two float32 programs of one network differ by at most."""


class OfficialNetwork:
    """An object of someone else's PyTorch class.

    Making it executes the Python file that is named.

    Args:
        named: FILE.py:CLASS, or FILE.py:CLASS(ARGUMENTS) with literal arguments.

    Raises:
        UserError: torch is missing, or there is no such class, or it fails.
    """

    def __init__(self, named: str):
        self.named = named
        try:
            import torch
        except ImportError as error:
            raise UserError(
                "--against runs PyTorch, which is not installed: pip install "
                "'cir_jax[convert]'"
            ) from error
        self._torch = torch
        file, _, call = named.partition(":")
        name, positional, keywords = self._parsed(call)
        if not (file.endswith(".py") and Path(file).is_file()):
            raise UserError(f"--against {named}: there is no Python file {file!r}")
        with self._running():
            module = _imported(Path(file))
            if not hasattr(module, name):
                raise UserError(f"--against {named}: the file has no {name}")
            self._network = getattr(module, name)(*positional, **keywords).eval()

    def output(
        self,
        tensors: Mapping[str, np.ndarray],
        image: Float32[np.ndarray, "h w c"],
        semantics: Float32[np.ndarray, "4 1 d"] | None = None,
    ) -> np.ndarray:
        """What the network makes of an image, [h, w, c].

        Args:
            tensors: the official state dict, which it must take strictly.
            image: in [0, 1].
            semantics: class tokens, for a network that wants some.

        Raises:
            UserError: it fails.
        """
        torch = self._torch
        with self._running(), torch.inference_mode():
            # A copy: torch warns of memory that may not be written to.
            self._network.load_state_dict(
                {n: torch.from_numpy(np.array(_wide(x))) for n, x in tensors.items()}
            )
            batch = torch.from_numpy(image.transpose(2, 0, 1)[None].copy())
            wanted = inspect.signature(self._network.forward).parameters.values()
            more = [p for p in wanted if p.default is p.empty][1:]
            # Without semantics it is UCIP's that wants more, the codec of each image;
            # ours takes the first as well.
            first = np.zeros(1, np.int64) if semantics is None else semantics
            output = self._network(batch, *[torch.from_numpy(first)] * len(more))
            return output[0].numpy().transpose(1, 2, 0)

    def _parsed(self, call: str) -> tuple[str, list[Any], dict[str, Any]]:
        """The class, and its positional and keyword arguments."""
        try:
            node = ast.parse(call, mode="eval").body
            if isinstance(node, ast.Name):
                node = ast.Call(node, [], [])
            return (
                node.func.id,
                [ast.literal_eval(value) for value in node.args],
                {k.arg: ast.literal_eval(k.value) for k in node.keywords},
            )
        except (AttributeError, SyntaxError, ValueError) as error:
            raise UserError(
                f"--against {self.named}: give it as FILE.py:CLASS or "
                "FILE.py:CLASS(name=value), with values such as 3, True or 'text'"
            ) from error

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """While someone else's code runs, which may raise anything, and also exit."""
        try:
            yield
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            first = (str(error) or "no message").splitlines()[0]
            raise UserError(
                f"--against {self.named} failed: {type(error).__name__}: {first}"
            ) from error


def check(
    path: Path, tensors: Mapping[str, np.ndarray], official: OfficialNetwork | None
) -> bool:
    """Restores a small picture that ships, and prints what came out.

    Args:
        path: a weights file of ours.
        tensors: its official state dict.
        official: what to run beside it, and to print how far the two are apart.

    Returns:
        Whether all of it is finite, and equal to the official one but for rounding.

    Raises:
        UserError: the official network fails.
    """
    model = weights.load(path)
    tokens = None
    if model.semantic_dim:
        print("check: semantics are made up, the same every time")
        shape = (4, 1, model.semantic_dim)
        tokens = np.random.default_rng(0).standard_normal(shape, np.float32)
    given = None if tokens is None else lambda _: tokens
    # In full precision, as torch runs on a CPU.
    restorer = Restorer(model, device="cpu", dinov2=given)
    image = image_io.read_rgb(photos.folder("validation") / "coffee.webp")
    image = np.float32(image[:SIDE, :SIDE, : restorer.channels]) / 255
    restored = restorer(image)
    if not np.isfinite(restored).all():
        print("check: FAILED, not all of the restored picture is finite")
        return False
    rounded = image_io.to_uint8(restored)
    height, width, _ = restored.shape
    print(
        f"check: coffee, {SIDE}x{SIDE} in, {width}x{height} out, "
        f"min {restored.min():.6f}, mean {restored.mean():.6f}, "
        f"max {restored.max():.6f}, deviation {restored.std():.6f}, sha256 of its "
        f"8 bits {hashlib.sha256(rounded.tobytes()).hexdigest()}"
    )
    if official is None:
        return True
    theirs = official.output(tensors, image, tokens)
    if theirs.shape != restored.shape:
        raise UserError(
            f"--against {official.named} gives an image of {theirs.shape}, ours "
            f"{restored.shape}"
        )
    difference, largest = np.abs(restored - theirs).max(), np.abs(theirs).max()
    equal = bool(difference <= EQUAL * largest)
    print(
        f"against {official.named}: largest difference {difference:.2e}, "
        f"{difference / largest:.2e} of the largest value: "
        f"{'equal but for rounding' if equal else 'NOT equal'}"
    )
    return equal


def _wide(tensor: np.ndarray) -> np.ndarray:
    """Half-precision weights as float32, in which both networks compute."""
    return tensor if tensor.dtype.kind in "iu" else tensor.astype(np.float32)


def _imported(file: Path) -> Any:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(f"official {file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for its own
    sys.path.insert(0, str(file.parent.resolve()))  # for its neighbours' sake
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
