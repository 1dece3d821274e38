import jax
import jax.numpy as jnp
import pytest
from twins import arrays, assert_twins

from cir_jax.ops import depthwise
from cir_jax.ops.depthwise import depthwise_conv


def each_channel_by_itself(x, kernel):
    return jnp.concatenate(
        [
            jax.lax.conv_general_dilated(
                x[..., c : c + 1],
                kernel[:, :, None, c : c + 1],
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            for c in range(x.shape[-1])
        ],
        axis=-1,
    )


@pytest.mark.parametrize("long", [0, 10**6])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("method", ["shift", "conv", None])
def test_each_method_filters_channels_one_by_one(method, size, long, monkeypatch):
    monkeypatch.setattr(depthwise, "LONG", long)
    x, kernel = arrays((2, 5, 7, 3), (size, size, 3))
    assert_twins(
        lambda x, kernel: depthwise_conv(x, kernel, method),
        each_channel_by_itself,
        x,
        kernel,
    )


@pytest.mark.parametrize(
    ("platform", "convolves"), [("cpu", False), ("tpu", False), ("cuda", True)]
)
def test_the_method_follows_the_platform_compiled_for(platform, convolves):
    traced = jax.jit(depthwise_conv).trace(*arrays((1, 8, 8, 4), (3, 3, 4)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in text) == convolves


@pytest.mark.parametrize("method", ["shift", "conv"])
def test_bfloat16_is_summed_in_float32(method):
    x, kernel = (a.astype(jnp.bfloat16) for a in arrays((1, 9, 9, 4), (5, 5, 4)))
    exact = depthwise_conv(*(a.astype(jnp.float32) for a in (x, kernel)), method)
    rounded = exact.astype(jnp.bfloat16)
    assert jnp.mean(depthwise_conv(x, kernel, method) == rounded) > 0.98


def test_bfloat16_stays_bfloat16_in_value_and_gradients():
    x, kernel = (a.astype(jnp.bfloat16) for a in arrays((1, 4, 4, 2), (3, 3, 2)))
    y, pull = jax.vjp(depthwise_conv, x, kernel)
    assert {a.dtype for a in (y, *pull(y))} == {jnp.dtype(jnp.bfloat16)}
