"""Fast functions against slow, obvious ones."""

import jax
import numpy as np
from flax import nnx


def assert_twins(fast, slow, *arguments, tolerance: float = 1e-5) -> None:
    """Asks that two functions agree in value and in the gradient of every argument."""
    expected = np.asarray(slow(*arguments))
    weights = np.random.RandomState(0).standard_normal(expected.shape)
    weights = weights.astype(np.float32)

    def value_and_gradients(function):
        def weighted(*arguments):
            output = function(*arguments)
            return (output * weights).sum(), output

        every = tuple(range(len(arguments)))
        gradients, output = jax.jit(jax.grad(weighted, argnums=every, has_aux=True))(
            *arguments
        )
        return output, *gradients

    pairs = zip(value_and_gradients(fast), value_and_gradients(slow), strict=True)
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(fast(*arguments), expected, tolerance, tolerance)


def assert_bfloat16_is_close(block, inputs: int = 1) -> None:
    """Asks that a block of 8 channels compute in bfloat16 nearly what float32 gives."""
    x = arrays(*[(1, 8, 8, 8)] * inputs)
    exact, rounded = (
        block(rngs=nnx.Rngs(0), dtype=dtype)(*(each.astype(dtype) for each in x))
        for dtype in ("float32", "bfloat16")
    )
    assert rounded.dtype == "bfloat16"
    np.testing.assert_allclose(rounded.astype("float32"), exact, atol=0.05)


def arrays(*shapes: tuple[int, ...], seed: int = 0) -> list[jax.Array]:
    """Standard normal float32 arrays."""
    random = np.random.RandomState(seed)
    return [
        jax.numpy.asarray(random.standard_normal(shape), jax.numpy.float32)
        for shape in shapes
    ]
