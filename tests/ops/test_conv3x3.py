import jax
import jax.numpy as jnp
import pytest
from twins import arrays, assert_twins

from cir_jax.ops import conv3x3


@pytest.mark.parametrize("largest", [0, 20e6])
@pytest.mark.parametrize(("inputs", "outputs"), [(6, 2), (2, 6), (3, 3)])
def test_products_and_shifts_are_the_convolution(inputs, outputs, largest, monkeypatch):
    monkeypatch.setattr(conv3x3, "LARGEST", largest)
    shapes = (2, 5, 7, inputs), (3, 3, inputs, outputs)
    assert_twins(conv3x3.on_cpu, conv3x3.plain, *arrays(*shapes))


@pytest.mark.parametrize(("platform", "convolves"), [("cpu", False), ("tpu", True)])
def test_accelerators_convolve(platform, convolves):
    traced = conv3x3.conv3x3.trace(*arrays((1, 8, 8, 4), (3, 3, 4, 2)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in text) == convolves


def test_bfloat16_stays_bfloat16_in_value_and_gradients():
    x, kernel = (a.astype(jnp.bfloat16) for a in arrays((1, 4, 4, 4), (3, 3, 4, 2)))
    y, pull = jax.vjp(conv3x3.conv3x3, x, kernel)
    assert {a.dtype for a in (y, *pull(y))} == {jnp.dtype(jnp.bfloat16)}
