"""Perceive-IR's first stage, with a small random CLIP from a real file."""

import itertools
import json

import foundations
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from test_experiment import CONFIGS, load
from test_train import lines, small_config

from cir_jax import cli, image_io, perceiver, photos
from cir_jax.compression import compressions
from cir_jax.encoders import clip, prompts
from cir_jax.errors import UserError
from cir_jax.restore import Restorer
from cir_jax.train import train_and_evaluate

STAGE1 = "perceive_ir_stage1.py"
PATCH = 32
"""What the CLIP sees."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return foundations.write(tmp_path_factory.mktemp("foundations"))


@pytest.fixture(scope="module")
def encoder(files):
    return clip.load(files["clip"])


def stage1(files):
    (path,) = (path for path in CONFIGS if path.name == STAGE1)
    config = load(path)
    config.model.context = 8
    config.dtype = "float32"
    config.batch_size = 16
    config.steps = 150
    config.optimizer.learning_rate = 5e-2
    config.data.patch = PATCH
    config.data.workers = 0
    config.data.tasks = ("jpeg",)
    config.evaluation.qualities = (5,)
    config.evaluation.every = config.checkpoint.every = 150
    config.guidance.clip = files["clip"]
    return config


@pytest.mark.slow
def test_prompts_tell_three_qualities_of_held_out_photographs(
    files, tmp_path, validation, capsys
):
    """A briefly trained network, its records in three tiers, and prompts for them."""
    encoded = ["encode", "--quality", "5", "--crop", "160", "--stride", "160"]
    assert cli.run([*encoded, "--out", str(tmp_path / "records")]) == cli.DONE
    brief = small_config(tmp_path / "records", validation)
    brief.steps = brief.evaluation.every = brief.checkpoint.every = 150
    brief.batch_size = 4
    train_and_evaluate(brief, tmp_path / "medium")
    tiers = ["tiers", str(tmp_path / "records"), "-o", str(tmp_path / "tiers")]
    seen = ["--weights", str(tmp_path / "medium")]
    assert cli.run([*tiers, *seen]) == cli.DONE

    config = stage1(files)
    config.data.records = str(tmp_path / "tiers")
    config.guidance.medium = str(tmp_path / "medium")
    scores = perceiver.train_and_evaluate(config, tmp_path / "run")
    assert sum(row["patches"] for row in scores["rows"]) >= 300
    assert scores["accuracy"] >= 0.5
    told = capsys.readouterr()
    assert "frozen per device, without gradient or optimizer: clip" in told.err
    assert "told rightly" in told.out
    assert json.loads((tmp_path / "run" / "scores.json").read_text()) == scores
    learnt = prompts.read_prompts(tmp_path / "run" / perceiver.WEIGHTS)
    assert learnt.shape == (3, 8, foundations.WIDTH)

    again = perceiver.train_and_evaluate(config, tmp_path / "run")  # it is finished
    assert again == scores
    assert len([line for line in lines(tmp_path / "run") if "loss" in line]) == 2


def test_the_loss_is_the_cross_entropy_of_scaled_cosines(encoder):
    model = perceiver.QualityPrompts(encoder, 4, rngs=nnx.Rngs(0))
    structure, frozen = nnx.split(encoder, nnx.Param)
    rng = np.random.default_rng(0)
    tiers = rng.integers(0, 256, (2, 3, PATCH, PATCH, 3), np.uint8)
    objective = perceiver.Perception(structure)

    @jax.jit
    def run(model, tiers, frozen):
        return objective(model, {"tiers": tiers}, {"clip": frozen}, {})

    loss, metrics = run(model, jnp.asarray(tiers), nnx.to_pure_dict(frozen))
    embedded = perceiver.embed(encoder, iter(tiers))
    towards = np.asarray(encoder.prompt_embedding(model.context[...]))
    logits = np.exp(float(encoder.logit_scale[...])) * embedded @ towards.T
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    right = chances[:, np.arange(3), np.arange(3)]
    assert float(loss) == pytest.approx(-np.log(right).mean(), rel=1e-4)
    assert float(metrics["accuracy"]) == np.mean(logits.argmax(-1) == np.arange(3))
    assert objective.memory == {} and objective.alone() is objective


def test_prompts_start_small_and_their_last_vector_as_a_word(encoder):
    model = perceiver.QualityPrompts(encoder, 16, (5, 6, 7), rngs=nnx.Rngs(0))
    context = np.asarray(model.context[...])
    assert context[:, :-1].std() == pytest.approx(0.02, rel=0.05)
    for number, token in enumerate((5, 6, 7)):
        word = encoder.token_embedding(token)
        np.testing.assert_array_equal(context[number, -1], word)


def test_words_come_from_the_tokenizer_beside_the_weights(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    assert perceiver.first_words(tmp_path / "model.safetensors") == []
    numbers = {"terrible": 3, "mediocre": 1, "excellent": 2}
    model = tokenizers.models.WordLevel(numbers, unk_token="terrible")
    tokenizers.Tokenizer(model).save(str(tmp_path / perceiver.TOKENIZER))
    assert perceiver.first_words(tmp_path / "model.safetensors") == [3, 1, 2]


def test_held_out_patches_are_side_by_side_in_three_qualities(tmp_path):
    image = image_io.read_rgb(photos.folder("validation") / "coffee.webp")[:70, :100]
    image_io.write_png(tmp_path / "image.png", image)
    tests = compressions("jpeg", (10, 60))
    restorer = Restorer(tiny.Filter(), tile=None)
    images = [tmp_path / "image.png"]
    found = list(perceiver.held_out_tiers(images, tests, restorer, PATCH))
    assert len(found) == 2 * 2 * 3
    for tiers, (test, y, x) in zip(
        found, itertools.product(tests, (0, 32), (0, 32, 64)), strict=True
    ):
        window = slice(y, y + PATCH), slice(x, x + PATCH)
        low = test(image, 1).degraded
        np.testing.assert_array_equal(tiers[0], low[window])
        np.testing.assert_array_equal(tiers[1], restorer(low)[window])
        np.testing.assert_array_equal(tiers[2], image[window])
    with pytest.raises(UserError, match="is 100x70 pixels, smaller than"):
        list(perceiver.held_out_tiers(images, tests, restorer, 96))


def test_what_patches_are_told_to_be_is_counted():
    scores = perceiver.confusion(np.array([[0, 1, 2], [1, 1, 2]]))
    assert scores["accuracy"] == pytest.approx(5 / 6)
    first = {"tier": "terrible", "patches": 2}
    assert scores["rows"][0] == first | dict(terrible=1, mediocre=1, excellent=0)
    assert "told rightly: 83.3%, by chance 33%" in perceiver.table(scores)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "l1"}, "unknown config.loss of quality_perceiver 'l1'"),
        ({"model.context": 0}, "config.model.context, how many vectors"),
        ({"guidance.clip": ""}, "config.guidance.clip is empty"),
        ({"guidance.medium": ""}, "config.guidance.medium is empty"),
        ({"data.records": "nowhere"}, "records folder nowhere does not exist"),
    ],
)
def test_what_cannot_be_trained_is_refused(files, tmp_path, changes, message):
    config = stage1(files)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        perceiver.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
