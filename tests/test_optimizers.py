import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cir_jax.errors import UserError
from cir_jax.losses import LOSSES, charbonnier, fft, l1, mse, parse_loss, psnr
from cir_jax.optimizers import Turn, learning_rate, optimizer, trained, turns


def config(**changes) -> ConfigDict:
    fields = {
        "name": "adamw",
        "learning_rate": 1e-2,
        "final_learning_rate": 1e-4,
        "warmup_steps": 0,
        "decay": "constant",
        "decay_at": (),
        "decay_factor": 1.0,
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    }
    return ConfigDict(fields | changes)


def rates(steps, total, **changes):
    schedule = learning_rate(config(**changes), total)
    return [float(schedule(step)) for step in steps]


def test_cosine_falls_from_peak_to_final():
    found = rates([0, 50, 100, 130], 100, decay="cosine")
    assert found == pytest.approx([1e-2, (1e-2 + 1e-4) / 2, 1e-4, 1e-4], rel=1e-5)


def test_steps_multiply_where_they_are_said_to():
    found = rates(
        [0, 99, 101, 201, 300],
        300,
        decay="step",
        decay_at=(100, 200),
        decay_factor=0.5,
        warmup_steps=10,
    )[1:]
    assert found == pytest.approx([1e-2, 5e-3, 2.5e-3, 2.5e-3], rel=1e-5)


def test_warm_up_rises_to_the_peak_and_no_step_is_lost_at_zero():
    found = rates([0, 1, 4, 9, 10], 50, warmup_steps=10)
    assert 0 < found[0] < found[1] < found[2] < found[3] <= found[4]
    assert found[4] == pytest.approx(1e-2)


def updates(gradients, params, **changes):
    transformation = optimizer(config(**changes), 10)
    return transformation.update(gradients, transformation.init(params), params)[0]


def test_clipping_bounds_the_global_norm():
    # Adam forgets the scale of the first gradient, but not its direction: clipping all
    # of it leaves the direction alone.
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    gradients = {"kernel": jnp.full((2, 2), 300.0), "bias": jnp.full(2, -400.0)}
    clipped = updates(gradients, params, clip_norm=1.0)
    np.testing.assert_allclose(clipped["kernel"], -1e-2, rtol=1e-4)
    np.testing.assert_allclose(clipped["bias"], 1e-2, rtol=1e-4)


def test_weight_decay_spares_vectors():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    gradients = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    decayed = updates(gradients, params, weight_decay=0.1)
    np.testing.assert_allclose(decayed["kernel"], -1e-2 * 0.1, rtol=1e-5)
    np.testing.assert_array_equal(decayed["bias"], 0)


TREE = {"groups": {0: {"prompts": jnp.ones(3)}}, "head": {"kernel": jnp.ones((2, 2))}}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), (True, True)),
        (("prompts",), (True, False)),
        (("^head/", r"groups/\d+/prompts$"), (True, True)),
    ],
)
def test_what_is_trained_is_said_by_paths(patterns, expected):
    prompts, kernel = expected
    tree = trained(TREE, patterns)
    assert tree == {"groups": {0: {"prompts": prompts}}, "head": {"kernel": kernel}}


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("promts", "did you mean 'groups/0/prompts'"), ("(", r"'\(': missing \)")],
)
def test_a_pattern_that_trains_nothing_is_refused(pattern, words):
    with pytest.raises(UserError, match=words):
        trained(TREE, (pattern,))


def test_the_optimizer_keeps_no_state_of_what_is_not_trained():
    transformation = Turn.of(optimizer(config(weight_decay=0.1), 10), ("prompts",)).rule
    sizes = [leaf.size for leaf in jax.tree.leaves(transformation.init(TREE))]
    assert max(sizes) == 3
    zero = jax.tree.map(jnp.zeros_like, TREE)
    found, _ = transformation.update(zero, transformation.init(TREE), TREE)
    np.testing.assert_array_equal(found["head"]["kernel"], 0)


PLACES = (("discriminator", "a"), ("features", "b"))
PLAYERS = {"discriminator": {"a": jnp.ones(2)}, "features": {"b": jnp.ones(2)}}


def experiment(updates, **changes):
    return ConfigDict(
        {
            "optimizer": config(),
            "adversary": {"updates": updates, "learning_rate": 3e-2},
            "steps": 10,
            "trainable": (),
        }
        | changes
    )


def moved(turn, params=PLAYERS):
    """By how much Adam's first step moves each player, given gradients of 1."""
    moving = trained(params, turn.trainable)
    gradients = jax.tree.map(lambda moves: jnp.full(2, 1.0 * moves), moving)
    found, _ = turn.rule.update(gradients, turn.rule.init(params), params)
    return [float(found[name][leaf][0]) for name, leaf in PLACES]


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ("none", [[-1e-2, -1e-2]]),
        ("alternating", [[-3e-2, 0], [0, -1e-2]]),
        ("simultaneous", [[-3e-2, -1e-2]]),
    ],
)
def test_players_move_in_turn_or_together_at_their_own_rates(updates, expected):
    found = [moved(turn) for turn in turns(experiment(updates))]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_players_are_trained_whole():
    with pytest.raises(UserError, match="both players are trained whole"):
        turns(experiment("alternating", trainable=("features",)))


def test_losses_on_numbers_done_by_hand():
    restored = jnp.array([0.0, 0.5, 1.0, 0.25]).reshape(1, 2, 2, 1)
    clean = jnp.array([0.0, 0.25, 0.5, 0.25]).reshape(1, 2, 2, 1)
    assert float(l1(restored, clean)) == pytest.approx(0.75 / 4)
    assert float(mse(restored, clean)) == pytest.approx(0.3125 / 4)
    expected = np.mean(np.sqrt(np.array([0, 0.25, 0.5, 0]) ** 2 + 1e-6))
    assert float(charbonnier(restored, clean)) == pytest.approx(expected, rel=1e-6)


def test_the_psnr_loss_is_the_mean_over_images_and_finite_for_perfect_ones():
    clean = jnp.full((2, 8, 8, 3), 0.5)
    restored = clean.at[0].add(0.1).at[1].add(0.05)  # 20 and 26 dB
    assert float(psnr(restored, clean)) == pytest.approx(-23.01, abs=0.01)
    assert float(psnr(clean, clean)) == pytest.approx(
        20 * np.log10(0.25 / 255), rel=1e-4
    )
    assert not np.any(jax.grad(psnr)(clean, clean))


def test_losses_of_bfloat16_images_are_float32():
    images = [jnp.full((1, 16, 16, 3), value, jnp.bfloat16) for value in (0.5, 0.25)]
    for loss in LOSSES.values():
        assert loss(images[0], images[1].astype(jnp.float32)).dtype == jnp.float32


def test_the_spectrums_loss_is_the_error_of_numpys_transform():
    random = np.random.default_rng(0)
    restored, clean = (random.random((2, 8, 12, 3), np.float32) for _ in range(2))
    spectra = [np.fft.fft2(x, axes=(1, 2)) / 96**0.5 for x in (restored, clean)]
    error = spectra[0] - spectra[1]
    expected = (np.abs(error.real).mean() + np.abs(error.imag).mean()) / 2
    ours = fft(jnp.asarray(restored), jnp.asarray(clean))
    assert float(ours) == pytest.approx(expected, rel=1e-5)


def test_terms_of_a_loss_and_their_weights():
    random = np.random.default_rng(0)
    pair = [jnp.asarray(random.random((2, 16, 16, 3), np.float32)) for _ in range(2)]
    terms = parse_loss("l1 + 0.05 fft+2 ssim")
    assert terms == ((1, "l1"), (0.05, "fft"), (2, "ssim"))
    assert LOSSES["ssim"](pair[0], pair[0]) == pytest.approx(0, abs=1e-5)
    for name in ("charbonnier", "psnr", "fft", "ssim"):
        assert np.isfinite(jax.grad(LOSSES[name])(*pair)).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("l3", "unknown config.loss 'l3'"),
        ("", "unknown config.loss ''"),
        ("l1 +", "unknown config.loss ''"),
        ("0 l1", "give each term once, as NAME or WEIGHT NAME"),
        ("1 2 l1", "give each term"),
        ("x l1", "give each term"),
        ("inf l1", "give each term"),
        ("l1 + 2 l1", "give each term once"),
        ("0.1 contrastive", "compares nothing with the clean image"),
    ],
)
def test_a_loss_that_cannot_be_read_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        parse_loss(text)


def test_each_optimizer_takes_its_own_first_step():
    """From zero moments: Adam's and Lion's are the sign of the gradient."""
    params = {"w": jnp.full((2, 2), 2.0)}
    gradient = {"w": jnp.array([[3.0, -3.0], [0.5, -0.5]])}
    for name, decay in (("adam", 0.0), ("adamw", 0.1), ("lion", 0.1)):
        rule = optimizer(config(name=name, weight_decay=decay), 10)
        update, _ = rule.update(gradient, rule.init(params), params)
        expected = -1e-2 * (np.sign(gradient["w"]) + decay * 2.0)
        np.testing.assert_allclose(update["w"], expected, rtol=1e-4)
    with pytest.raises(UserError, match=r"weight_decay=0\.1 and adam.*take adamw"):
        optimizer(config(name="adam", weight_decay=0.1), 10)
