"""Counted FLOPs, against counting by hand."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from cir_jax.flops import model_flops
from cir_jax.models import abstract, abstract_model
from cir_jax.models.layers import GDFN, MDTA, LayerNorm
from cir_jax.ops.depthwise import depthwise_conv

SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)
ONE = 2 * 8**3
"""Of a product of two such matrices."""


def product(x):
    return x @ x


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def conv(x, kernel, *, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def of(module, x, *others):
    graphdef, params = nnx.split((module, *others))

    def call(params, x):
        module, *others = nnx.merge(graphdef, params)
        return module(x, *others)

    return model_flops(call, params, x)


@pytest.mark.parametrize(
    ("formula", "shapes", "multiply_adds"),
    [
        ("ij,jk->ik", ((3, 4), (4, 5)), 3 * 4 * 5),
        ("bij,bjk->bik", ((2, 3, 4), (2, 4, 5)), 2 * 3 * 4 * 5),
        ("bpnd,bpne->bnde", ((2, 9, 3, 4), (2, 9, 3, 4)), 2 * 9 * 3 * 4 * 4),
        ("ijk,jkl->il", ((3, 4, 5), (4, 5, 6)), 3 * 4 * 5 * 6),
    ],
)
def test_a_product_takes_two_for_each_multiply_add(formula, shapes, multiply_adds):
    flops = model_flops(
        lambda x, y: jnp.einsum(formula, x, y), *(shape(*s) for s in shapes)
    )
    assert flops == 2 * multiply_adds


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_counts_the_inputs_of_its_groups(stride, groups):
    flops = model_flops(
        lambda x, k: conv(x, k, stride=stride, groups=groups),
        shape(2, 8, 6, 4),
        shape(3, 3, 4 // groups, 12),
    )
    pixels = 2 * (8 // stride) * (6 // stride)
    assert flops == 2 * pixels * 9 * (4 // groups) * 12


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gradients_take_twice_as_much_as_the_forward(groups):
    arguments = shape(2, 8, 6, 4), shape(3, 3, 4 // groups, 12)

    def loss(x, kernel):
        return conv(x, kernel, groups=groups).sum()

    forward = model_flops(loss, *arguments)
    gradient = model_flops(jax.value_and_grad(loss, (0, 1)), *arguments)
    assert forward and gradient == 3 * forward


def test_nothing_else_counts():
    def function(x):
        x = jax.nn.softmax(jax.nn.gelu(x)) + jnp.cumsum(x, axis=0)
        return jnp.sort(jax.image.resize(x, (8, 4), "nearest")).sum(axis=0)

    assert model_flops(function, SQUARE) == 0


@jax.custom_jvp
def with_jvp(x):
    return product(x)


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0]))


@jax.custom_vjp
def with_vjp(x):
    return product(x)


with_vjp.defvjp(lambda x: (with_vjp(x), None), lambda _, g: (g,))


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (jax.jit(product), 1),
        (with_jvp, 1),
        (with_vjp, 1),
        (jax.checkpoint(product), 1),
        (jax.vmap(lambda row: row @ jnp.ones((8, 8))), 1),
        (jax.jit(lambda x: product(jax.jit(product)(x)) + product(x)), 3),
        (lambda x: jax.lax.scan(lambda c, _: (product(c), c), x, length=5)[0], 5),
        (lambda x: jax.lax.fori_loop(0, 5, lambda _, c: product(c), x), 5),
        (lambda x: jax.lax.map(lambda _: product(x), jnp.arange(3)), 3),
        # Of a while loop nobody knows how often it runs.
        (lambda x: jax.lax.while_loop(lambda c: c[0, 0] < 9, product, x), 1),
        (
            lambda x: jax.lax.cond(
                x[0, 0] > 0, lambda x: product(product(x)), product, x
            ),
            2,
        ),
        (
            lambda x: jax.lax.cond(
                x[0, 0] > 0, product, lambda x: product(product(x)), x
            ),
            2,
        ),
    ],
)
def test_what_is_called_counts(function, products):
    assert model_flops(function, SQUARE) == products * ONE


def dependent(**branches):
    return lambda x: jax.lax.platform_dependent(x, **branches)


def twice(x):
    return product(product(x))


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (dependent(cpu=twice, default=product), 1),
        (dependent(cpu=product, default=twice), 2),
        (dependent(cpu=twice, tpu=lambda x: x, default=product), 1),
        (dependent(cpu=lambda x: x, default=product), 1),
        (dependent(cpu=product, tpu=twice), 2),  # no default: the most
        (jax.jit(dependent(cpu=twice, default=product)), 1),
        (jax.vmap(dependent(cpu=lambda x: x, default=lambda x: x * (x @ x))), 1 / 8),
    ],
)
def test_of_forms_for_platforms_the_default_one_counts(function, products):
    assert model_flops(function, SQUARE) == products * ONE


def test_gradients_of_forms_for_platforms():
    gradient = jax.grad(lambda x: dependent(cpu=twice, default=product)(x).sum())
    assert model_flops(gradient, SQUARE) == 3 * ONE


def test_depthwise_convolutions_count_on_every_platform():
    """The CPU's form, a sum of shifted maps, has nothing that counts."""
    arguments = shape(2, 8, 6, 4), shape(5, 5, 4)
    assert model_flops(depthwise_conv, *arguments) == 2 * 2 * 8 * 6 * 25 * 4
    shifts = lambda x, kernel: depthwise_conv(x, kernel, "shift")  # noqa: E731
    assert model_flops(shifts, *arguments) == 0


def test_restormers_parts_by_their_formulas():
    x, pixels, c, heads, hidden = shape(2, 8, 6, 12), 2 * 8 * 6, 12, 3, 24
    dtype = jnp.float32
    norm = abstract(lambda rngs: LayerNorm(c, rngs=rngs, dtype=dtype))
    feed_forward = of(
        abstract(lambda rngs: GDFN(c, 2.0, rngs=rngs, dtype=dtype)), x, norm
    )
    multiply_adds = c * 2 * hidden + 9 * 2 * hidden + hidden * c
    assert feed_forward == 2 * pixels * multiply_adds
    attention = of(abstract(lambda rngs: MDTA(c, heads, rngs=rngs, dtype=dtype)), x)
    multiply_adds = 3 * c * c + 9 * 3 * c + 2 * c * (c // heads) + c * c
    assert attention == 2 * pixels * multiply_adds


@pytest.mark.parametrize(
    ("config", "side", "gflop"),
    [({"name": "promptcir"}, 128, 129.4), ({"name": "ucip"}, 64, 98.2)],
)
def test_the_published_networks(config, side, gflop):
    """Within a percent of what was counted when they were optimised."""
    flops = of(abstract_model(config), shape(1, side, side, 3))
    assert flops == pytest.approx(gflop * 1e9, rel=0.01)
