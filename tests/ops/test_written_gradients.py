import jax
import jax.numpy as jnp
from twins import arrays, assert_twins

from cir_jax.ops.gated_gelu import gated_gelu
from cir_jax.ops.matmul import matmul


def test_gated_gelu_is_the_exact_gelu_times_the_value():
    shape = (2, 3, 50)
    gate, value = arrays(shape, shape)
    assert_twins(
        gated_gelu,
        lambda gate, value: jax.nn.gelu(gate, approximate=False) * value,
        4 * gate,
        value,
    )


def test_gated_gelu_keeps_only_its_inputs_for_the_gradient():
    gate, value = arrays((4, 8), (4, 8))
    _, pull = jax.vjp(gated_gelu, gate, value)
    assert sum(x.size for x in jax.tree.leaves(pull)) == gate.size + value.size


def test_matmul_multiplies():
    assert_twins(matmul, jnp.matmul, *arrays((2, 3, 4, 5), (5, 6)))


def test_matmul_sums_the_kernel_gradient_in_float32():
    x, kernel = jnp.ones((1000, 1), jnp.bfloat16), jnp.ones((1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda k: matmul(x, k).sum().astype(jnp.float32))(kernel)
    assert gradient.dtype == jnp.bfloat16
    assert gradient.item() == 1000
