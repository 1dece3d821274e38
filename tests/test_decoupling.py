"""DAGN's first stage: two players' losses, and a training of both that resumes."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from test_experiment import QUICKSTART, load
from test_train import assert_same_params, lines, small_config

from cir_jax import decoupling, weights
from cir_jax.checkpoints import Checkpoints
from cir_jax.decoupling import Labels, quality_losses
from cir_jax.errors import UserError
from cir_jax.models import abstract_model, build_model
from cir_jax.train import initial_model, train_and_evaluate

STAGE1 = QUICKSTART.with_name("dagn_stage1_quickstart.py")
STAGE2 = QUICKSTART.with_name("dagn_quickstart.py")
TERMS = "reconstruction + 0.01 {} + 0.1 alignment + 0.5 quality + ranking + 0.1 codec"
SMALL = ("steps", "batch_size", "data", "evaluation", "checkpoint", "log_every")


def test_the_losses_of_the_head_on_numbers_done_by_hand():
    labels = Labels(jnp.array([0, 1]), jnp.array([0.5, 0.2]), jnp.array([0.9, 0.2]))
    # First versions, second versions, originals; each codec's quality.
    told = jnp.array([[0.6, 9], [9, 0.3], [0.58, 9], [9, 0.1], [9, 9], [9, 9]])
    logits = jnp.log(jnp.array([[1, 2, 1]] * 4 + [[2, 1, 1]] * 2) / 4)
    losses = quality_losses(logits, told, labels)
    assert float(losses["quality"]) == pytest.approx((0.1 + 0.32 + 0.1 + 0.1) / 4)
    # The better one of the first pair is told to be worse by 0.02; the second is equal.
    assert float(losses["ranking"]) == pytest.approx((0.05 + 0.02) / 2)
    wrong = [2, 4, 2, 4, 2, 2]  # one over the shares of what is true
    assert float(losses["codec"]) == pytest.approx(np.mean(np.log(wrong)))


def setting(game="hinge", **model):
    """A tiny network, its objective, a batch and the memory."""
    config = load(STAGE1)
    config.model = tiny.FEATURES | model
    config.loss = TERMS.format(game)
    network = build_model(config.model, nnx.Rngs(0))
    objective = decoupling.from_config(config, network)
    rng = np.random.default_rng(0)
    batch = {
        name: jnp.asarray(rng.integers(0, 256, (2, 16, 16, 3), np.uint8))
        for name in ("degraded", "clean", "other")
    }
    for name, values in {"codec": (0, 1), "quality": (10, 40)}.items():
        batch[name] = jnp.array(values)
    batch["other_quality"] = jnp.array([60, 20])
    return network, objective, batch, objective.memory


@pytest.mark.parametrize(
    "game", ["hinge", pytest.param("least_squares", marks=pytest.mark.slow)]
)
def test_each_player_gets_the_gradient_of_its_own_loss_alone(game):
    network, objective, batch, memory = setting(game)
    graphdef, params = nnx.split(network, nnx.Param)

    def losses(params):
        total, metrics = objective(nnx.merge(graphdef, params), batch, {}, memory)
        named = [weight * metrics[f"loss_{name}"] for weight, name in objective.terms]
        return jnp.stack([total, sum(named), metrics["loss_discriminator"]])

    whole, ours, theirs = (
        weights.flatten(nnx.to_pure_dict(jax.tree.map(lambda x, i=i: x[i], jacobian)))
        for jacobian in [jax.jit(jax.jacrev(losses))(params)]
        for i in range(3)
    )
    for name, value in whole.items():
        player, other = ours, theirs
        if name.startswith("discriminator."):
            player, other = theirs, ours
        np.testing.assert_allclose(value, player[name], atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(other[name], 0, err_msg=name)
    for player in (ours, theirs):
        assert max(np.abs(value).max() for value in player.values()) > 0


def test_codes_do_not_become_alike_by_becoming_small():
    network, *_ = setting()
    code = jax.random.normal(jax.random.key(0), (2, 2, 2, 32))
    left, right = (network.discriminator(c) for c in (code, 0.1 * code))
    np.testing.assert_allclose(left, right, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "0.1 quality"}, "has no reconstruction"),
        ({"loss": "reconstruction"}, "an adversary needs all three"),
        ({"loss": TERMS.format("hinge + least_squares")}, "two games"),
        ({"loss": "l1"}, "unknown config.loss 'l1'"),
        ({"adversary.updates": "none"}, "an adversary needs all three"),
        ({"model.adversarial": False}, "an adversary needs all three"),
        ({"data.tasks": ("jpeg",)}, r"config\.data\.tasks"),
    ],
)
def test_an_adversary_by_halves_is_refused(changes, words):
    config = load(STAGE1)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        decoupling.from_config(config, abstract_model(config.model))


@pytest.fixture
def config(records, validation):
    small = small_config(records, validation)
    config = load(STAGE1)
    config.model = tiny.FEATURES | {"codecs": ("jpeg 1 100",)}
    for name in SMALL:
        config[name] = small[name]
    config.data.patch = 16
    config.steps, config.evaluation.every = 4, 4
    return config


@pytest.mark.slow
@pytest.mark.parametrize("updates", ["alternating", "simultaneous"])
def test_both_players_train_and_resume_to_the_last_bit(updates, config, tmp_path):
    config.adversary.updates = updates
    train_and_evaluate(config, tmp_path / "whole")
    logged = [line for line in lines(tmp_path / "whole") if "loss" in line]
    assert {"loss_discriminator", "loss_hinge", "loss_quality"} <= logged[-1].keys()

    # As if the second half of it had not happened.
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints" / "4")
    train_and_evaluate(config, cut)
    assert_same_params(cut, tmp_path / "whole")
    states = [
        Checkpoints(folder / "checkpoints", 1, read_only=True).read(4, None)[1]
        for folder in (cut, tmp_path / "whole")
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert len(states[0]["opt_state"]) == (2 if updates == "alternating" else 1)


@pytest.mark.slow
def test_the_second_stage_starts_from_the_first_one_and_leaves_it_alone(
    config, records, validation, tmp_path
):
    first = tmp_path / "first.safetensors"
    features = build_model(config.model, nnx.Rngs(3))
    weights.save(first, features, {})
    stage2 = load(STAGE2)
    stage2.model = tiny.DAGN | {"codecs": ("jpeg 1 100",)}
    stage2.init_from = str(first)
    for name in SMALL:
        stage2[name] = config[name]
    train_and_evaluate(stage2, tmp_path / "run")
    trained, start = weights.load(tmp_path / "run"), initial_model(stage2)
    for name in ("sensitive", "insensitive"):
        for model in (trained, start):
            ours, theirs = (nnx.state(getattr(m, name)) for m in (model, features))
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert not np.array_equal(trained.tail.kernel[...], start.tail.kernel[...])

    stage2.model.feature_dim = 8
    with pytest.raises(UserError, match=r"init_from=.*have feature_dim 4"):
        initial_model(stage2)
