import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec
from programs import printed

from cir_jax import parallel, weights
from cir_jax.models import abstract_model
from cir_jax.models.layers import Block
from cir_jax.objectives import Objective, Restoration
from cir_jax.optimizers import Turn
from cir_jax.rematerialise import rematerialise
from cir_jax.train_step import TrainState, make_step

CHARBONNIER = Restoration(((1.0, "charbonnier"),))


def step_of(model, **options):
    """A step of plain gradient descent, so that the parameters tell the gradient."""
    graphdef, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    descent = optax.sgd(1.0)
    state = TrainState(jnp.int32(0), params, (descent.init(params),), params, {})
    step = jax.jit(make_step(graphdef, CHARBONNIER, [Turn(descent)], 0.5, **options))
    batch = {
        name: np.random.default_rng(seed).integers(0, 256, (4, 16, 16, 3), np.uint8)
        for seed, name in enumerate(("degraded", "clean"))
    }
    return step.lower(state, batch, {}).compile(), state, batch


def assert_same_step(left, right):
    (left_state, left_metrics), (right_state, right_metrics) = left, right
    for name, value in left_metrics.items():
        np.testing.assert_allclose(value, right_metrics[name], rtol=1e-5)
    expected = weights.flatten(right_state.params)
    for name, value in weights.flatten(left_state.params).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5, err_msg=name)


class Two(nnx.Module):
    """Two numbers that play."""

    def __init__(self):
        self.discriminator = nnx.Param(jnp.float32(2.0))
        self.other = nnx.Param(jnp.float32(3.0))


class Product(Objective):
    """Both would make the product of themselves small."""

    def __call__(self, model, batch, frozen, memory):
        """The product."""
        product = model.discriminator[...] * model.other[...]
        return product, {}


@pytest.mark.parametrize(
    ("together", "expected"), [(False, (1.7, 2.83)), (True, (1.7, 2.8))]
)
def test_a_later_turn_sees_what_an_earlier_one_has_changed(together, expected):
    graphdef, params = nnx.split(Two(), nnx.Param)
    params, descent = nnx.to_pure_dict(params), optax.sgd(0.1)
    names = [()] if together else [("discriminator",), ("other",)]
    turns = [Turn.of(descent, trainable) for trainable in names]
    moments = tuple(turn.rule.init(params) for turn in turns)
    step = jax.jit(make_step(graphdef, Product(), turns, 0.5))
    state, _ = step(TrainState(jnp.int32(0), params, moments, params, {}), {}, {})
    np.testing.assert_allclose(jax.tree.leaves(state.params), expected, rtol=1e-6)


def test_a_batch_in_several_passes_gives_the_same_step():
    once, state, batch = step_of(tiny.Filter())
    passes, _, _ = step_of(tiny.Filter(), accumulate=4)
    assert_same_step(passes(state, batch, {}), once(state, batch, {}))


@pytest.mark.slow
def test_blocks_computed_again_give_the_same_step():
    plain, state, batch = step_of(tiny.light())
    again, _, _ = step_of(tiny.light(), policy="blocks")
    assert_same_step(again(state, batch, {}), plain(state, batch, {}))


@pytest.mark.slow
def test_blocks_computed_again_take_less_memory_of_a_tpu():
    """Of a CPU they do not: its compiler computes nothing twice."""
    pytest.importorskip("libtpu")
    sizes = printed("aot_rematerialise.py")
    assert sizes["blocks"] < 0.5 * sizes["products"]
    assert sizes["products"] < 1.01 * sizes["none"]  # less by some libtpu, not by all


@pytest.mark.parametrize(
    "config",
    [
        {"name": "perceive_ir", "semantics": "none"},
        *(
            {"name": name}
            for name in (
                "dagn",
                "promptcir",
                "promptir",
                "restormer",
                "ucip",
            )
        ),
    ],
    ids=lambda config: config["name"],
)
def test_every_network_has_blocks_that_can_be_computed_again(config):
    model = abstract_model({"variant": "XT"} | config)
    image = jnp.zeros((1, 32, 32, 3))

    def traced(policy):
        graphdef, params = nnx.split(model, nnx.Param)

        def run(params):
            copy = nnx.merge(graphdef, params)
            rematerialise(copy, policy)
            return copy(image)

        return str(jax.make_jaxpr(run)(params))

    blocks = sum(isinstance(m, Block) for _, m in nnx.iter_modules(model))
    others = traced("none").count("remat2[")  # prompts, which always are
    assert traced("blocks").count("remat2[") - others == blocks > 0


def test_state_is_cut_along_its_largest_axis_that_divides():
    mesh = AbstractMesh((2, 4), parallel.AXES)
    shapes = {
        "first of equals": (3, 3, 8, 8),
        "largest": (4, 12),
        "largest that divides": (13, 4),
        "none": (3, 5),
        "scalar": (),
    }
    tree = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
    specs = {n: s.spec for n, s in parallel.state_shardings(mesh, tree).items()}
    assert specs == {
        "first of equals": PartitionSpec(None, None, "fsdp", None),
        "largest": PartitionSpec(None, "fsdp"),
        "largest that divides": PartitionSpec(None, "fsdp"),
        "none": PartitionSpec(None, None),
        "scalar": PartitionSpec(),
    }


@pytest.mark.parametrize("name", ["promptcir", "ucip"])
def test_of_published_networks_nearly_all_is_cut(name):
    mesh = AbstractMesh((1, 8), parallel.AXES)
    params = nnx.to_pure_dict(nnx.state(abstract_model({"name": name}), nnx.Param))
    whole = sum(leaf.size for leaf in jax.tree.leaves(params))
    shardings = parallel.state_shardings(mesh, params)
    of_one = sum(
        np.prod(sharding.shard_shape(leaf.shape))
        for leaf, sharding in zip(
            jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True
        )
    )
    assert 1 / 8 <= of_one / whole < 1 / 7
