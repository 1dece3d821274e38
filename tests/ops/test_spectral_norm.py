import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax.ops.spectral_norm import spectral_norm, turned


@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (3, 3, 2, 1), (4, 6)])
def test_turns_lead_to_the_largest_singular_value_and_its_gradient(shape):
    kernel = jax.random.normal(jax.random.key(0), shape)
    direction = jnp.full(shape[-1], shape[-1] ** -0.5)
    direction = jax.lax.fori_loop(0, 200, lambda _, d: turned(kernel, d), direction)
    value, gradient = jax.jit(jax.value_and_grad(spectral_norm))(kernel, direction)

    left, values, right = np.linalg.svd(
        np.asarray(kernel).reshape(-1, shape[-1]), full_matrices=False
    )
    np.testing.assert_allclose(value, values[0], rtol=1e-4)
    expected = np.outer(left[:, 0], right[0]).reshape(shape)
    np.testing.assert_allclose(gradient, expected, atol=1e-3)


def test_a_kernel_of_zeros_has_no_norm_and_a_finite_gradient():
    zeros, direction = jnp.zeros((3, 3, 2, 4)), jnp.full(4, 0.5)
    value, gradient = jax.value_and_grad(spectral_norm)(zeros, direction)
    assert value == 0 and np.isfinite(gradient).all()
    assert np.isfinite(turned(zeros, direction)).all()
