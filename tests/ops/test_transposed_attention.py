import jax
import jax.numpy as jnp
import numpy as np
import pytest
from twins import arrays, assert_twins

from cir_jax.ops.transposed_attention import transposed_attention


def head_by_head(q, k, v, temperature):
    b, h, w, c = q.shape
    size = c // len(temperature)
    images = []
    for i in range(b):
        heads = []
        for n, t in enumerate(temperature[:, 0, 0]):
            part = slice(n * size, (n + 1) * size)
            q_, k_, v_ = (x[i, :, :, part].reshape(h * w, size).T for x in (q, k, v))
            q_ = q_ / jnp.linalg.norm(q_, axis=1, keepdims=True)
            k_ = k_ / jnp.linalg.norm(k_, axis=1, keepdims=True)
            weights = jax.nn.softmax(q_ @ k_.T * t, axis=1)
            heads.append((weights @ v_).T.reshape(h, w, size))
        images.append(jnp.concatenate(heads, axis=-1))
    return jnp.stack(images)


@pytest.mark.parametrize("heads", [1, 2])
def test_equals_attention_spelt_out_head_by_head(heads):
    shape = (2, 3, 5, 6)
    q, k, v, temperature = arrays(shape, shape, shape, (heads, 1, 1))
    assert_twins(transposed_attention, head_by_head, q, k, v, 1 + temperature)


def test_black_maps_have_finite_gradients():
    zeros, temperature = jnp.zeros((1, 4, 4, 4)), jnp.ones((2, 1, 1))
    gradients = jax.grad(
        lambda *a: transposed_attention(*a).sum(), argnums=(0, 1, 2, 3)
    )(zeros, zeros, zeros, temperature)
    assert all(np.isfinite(g).all() for g in gradients)


def test_bfloat16_maps_are_compared_in_float32():
    shape = (1, 16, 16, 8)
    q, k, v = arrays(shape, shape, shape)
    temperature = jnp.full((2, 1, 1), 4.0)
    exact = transposed_attention(q, k, v, temperature)
    rounded = transposed_attention(
        *(x.astype(jnp.bfloat16) for x in (q, k, v)), temperature
    )
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=0.03)
