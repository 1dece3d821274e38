import jax
import jax.numpy as jnp
from twins import arrays, assert_twins

from cir_jax.ops.gelu import gated_gelu, gelu
from cir_jax.ops.layer_norm import bias_free_layer_norm, layer_norm
from cir_jax.ops.matmul import matmul


def kept_for_the_gradient(function, *arguments):
    """How many numbers lie between a function and its gradient."""
    _, pull = jax.vjp(function, *arguments)
    return sum(x.size for x in jax.tree.leaves(pull))


def test_gelu_is_the_exact_one_and_keeps_only_its_input():
    (x,) = arrays((2, 3, 50))
    assert_twins(gelu, lambda x: jax.nn.gelu(x, approximate=False), 4 * x)
    assert kept_for_the_gradient(gelu, x) == x.size


def test_gated_gelu_is_the_exact_gelu_times_the_value():
    shape = (2, 3, 50)
    gate, value = arrays(shape, shape)
    assert_twins(
        gated_gelu,
        lambda gate, value: jax.nn.gelu(gate, approximate=False) * value,
        4 * gate,
        value,
    )


def test_gated_gelu_keeps_only_its_inputs():
    gate, value = arrays((4, 8), (4, 8))
    assert kept_for_the_gradient(gated_gelu, gate, value) == gate.size + value.size


def test_layer_norm_normalises_each_pixel():
    def spelt_out(x, scale, bias):
        deviation = jnp.sqrt(jnp.var(x, axis=-1, keepdims=True) + 1e-5)
        return (x - jnp.mean(x, axis=-1, keepdims=True)) / deviation * scale + bias

    x, scale, bias = arrays((2, 3, 4, 8), (8,), (8,))
    assert_twins(layer_norm, spelt_out, 3 * x + 1, scale, bias)
    assert_twins(layer_norm, spelt_out, 0 * x + 1, scale, bias)


def test_bias_free_layer_norm_does_not_centre():
    def spelt_out(x, scale):
        return x / jnp.sqrt(jnp.var(x, axis=-1, keepdims=True) + 1e-5) * scale

    x, scale = arrays((2, 3, 4, 8), (8,))
    assert_twins(bias_free_layer_norm, spelt_out, 3 * x + 1, scale)


def test_layer_norms_keep_two_numbers_a_pixel():
    x, scale, bias = arrays((2, 3, 4, 8), (8,), (8,))
    for norm, *parameters in ((layer_norm, scale, bias), (bias_free_layer_norm, scale)):
        kept = kept_for_the_gradient(norm, x, *parameters)
        assert kept == x.size + 2 * (2 * 3 * 4) + scale.size


def test_matmul_multiplies():
    assert_twins(matmul, jnp.matmul, *arrays((2, 3, 4, 5), (5, 6)))


def test_matmul_sums_the_kernel_gradient_in_float32():
    x, kernel = jnp.ones((1000, 1), jnp.bfloat16), jnp.ones((1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda k: matmul(x, k).sum().astype(jnp.float32))(kernel)
    assert gradient.dtype == jnp.bfloat16
    assert gradient.item() == 1000
