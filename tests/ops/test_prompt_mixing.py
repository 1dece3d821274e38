import math

import jax
import jax.numpy as jnp
import pytest
from twins import arrays, assert_twins

from cir_jax.ops.prompt_mixing import mix_prompts


def every_product_at_once(tasks, bases, prompts):
    products = tasks[..., :, None, None] * bases[..., None, :, None] * prompts
    return products.sum(axis=(3, 4))  # b h w t n c -> b h w c


def test_equals_the_sum_over_all_tasks_and_bases():
    shapes = (2, 3, 4, 5), (2, 3, 4, 6), (5, 6, 7)
    assert_twins(mix_prompts, every_product_at_once, *arrays(*shapes))


@pytest.mark.parametrize("differentiate", [False, True])
def test_nothing_larger_than_the_mixed_weights_is_stored(differentiate):
    b, h, w, t, n, c = 2, 8, 8, 7, 16, 40

    def run(*arguments):
        if differentiate:
            return jax.grad(lambda *a: mix_prompts(*a).sum(), argnums=(0, 1, 2))(
                *arguments
            )
        return mix_prompts(*arguments)

    jaxpr = jax.make_jaxpr(run)(
        jnp.ones((b, h, w, t)), jnp.ones((b, h, w, n)), jnp.ones((t, n, c))
    )
    sizes = [math.prod(v.aval.shape) for eqn in jaxpr.jaxpr.eqns for v in eqn.outvars]
    assert max(sizes) == b * h * w * t * n
