import jax
import jax.numpy as jnp
from twins import arrays, assert_twins

from cir_jax.ops import prompt_mixing
from cir_jax.ops.prompt_mixing import mix_prompts


def every_product_at_once(tasks, bases, prompts):
    products = tasks[..., :, None, None] * bases[..., None, :, None] * prompts
    return products.sum(axis=(3, 4))  # b h w t n c -> b h w c


def test_equals_the_sum_over_all_tasks_and_bases():
    shapes = (2, 3, 4, 5), (2, 3, 4, 6), (5, 6, 7)
    assert_twins(mix_prompts, every_product_at_once, *arrays(*shapes))


def test_the_products_of_all_weights_are_never_there():
    pixels, tasks, bases, width = 192**2, 7, 64, 64
    shapes = (1, 192, 192, tasks), (1, 192, 192, bases), (tasks, bases, width)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    for mix in (prompt_mixing.in_strips, prompt_mixing.task_by_task):
        gradient = jax.grad(lambda *a, mix=mix: mix(*a).sum(), argnums=(0, 1, 2))
        compiled = jax.jit(mix).lower(*arguments).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 30e6
        compiled = jax.jit(gradient).lower(*arguments).compile()
        assert (
            compiled.memory_analysis().temp_size_in_bytes < 4 * pixels * tasks * bases
        )
