"""Perceive-IR's second stage, with small made-up foundation models from real files."""

import shutil

import foundations
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from test_train import lines, small_config

from cir_jax import Restorer, cli, guidance, image_io, objectives, weights
from cir_jax.encoders import dinov2
from cir_jax.errors import UserError
from cir_jax.losses import GUIDED
from cir_jax.models import abstract_model, build_model
from cir_jax.train import train_and_evaluate

MODEL = {
    "name": "perceive_ir",
    "dim": 4,
    "num_blocks": (1, 1, 1, 1),
    "num_refinement_blocks": 1,
    "heads": (1, 1, 1, 1),
    "ffn_expansion": 1.0,
    "content_dim": 4,
    "semantic_dim": foundations.WIDTH,
}
EVERYTHING = "l1 + 0.1 contrastive + 0.05 clip_quality + 0.1 difficulty"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foundations")
    paths = foundations.write(folder)
    weights.save(folder / "proxy.safetensors", tiny.light(), {})
    return paths | {"proxies": (f"{folder / 'proxy.safetensors'} for jpeg 10",)}


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "records"
    arguments = ["encode", "--quality", "10,60", "--crop", "160", "--stride", "160"]
    assert cli.run([*arguments, "--out", str(out)]) == cli.DONE
    return out


@pytest.fixture
def config(two_tasks, validation, files):
    """Every term of the loss, and semantics."""
    config = small_config(two_tasks, validation)
    config.model = MODEL
    config.batch_size = 4
    config.data.patch = 16
    config.data.tasks = ("jpeg 10", "jpeg 60")
    config.loss = EVERYTHING
    with config.guidance.unlocked():
        config.guidance.update(files)
    return config


@pytest.mark.slow
def test_all_terms_train_resume_exactly_and_leave_frozen_networks_alone(
    config, tmp_path, capsys, monkeypatch
):
    # What FLOPs are counted of takes as long to trace again; see the next test.
    monkeypatch.setattr(objectives.Restoration, "alone", lambda objective: objective)
    config.steps, config.evaluation.every, config.checkpoint.every = 2, 2, 1
    whole = train_and_evaluate(config, tmp_path / "whole")
    told = capsys.readouterr().err
    assert "frozen per device, without gradient or optimizer: clip" in told
    logged = [line for line in lines(tmp_path / "whole") if "loss" in line]
    names = {f"loss_{name}" for name in ("l1", *GUIDED)}
    assert all(names <= line.keys() for line in logged)
    assert "semantics" in whole.protocol
    size = sum(x.size for x in jax.tree.leaves(nnx.state(abstract_model(MODEL))))
    assert f"{size:,} parameters, {size:,} of them trained" in " ".join(told.split())

    # As if the second half of it had not happened.
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints" / "2")
    (cut / weights.WORKDIR_NAME).unlink()
    train_and_evaluate(config, cut)
    assert "1 of 2 steps done" in " ".join(capsys.readouterr().err.split())
    ours, expected = (
        weights.read(folder / weights.WORKDIR_NAME)[1]
        for folder in (cut, tmp_path / "whole")
    )
    for name, value in ours.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.slow
def test_every_term_has_a_gradient_of_its_own(config):
    model = build_model(config.model, nnx.Rngs(0))
    objective, frozen = guidance.load(config, model, objectives.from_config(config))
    graphdef, params = nnx.split(model, nnx.Param)
    rng = np.random.default_rng(0)
    batch = {
        name: jnp.asarray(rng.integers(0, 256, (4, 16, 16, 3), np.uint8))
        for name in ("degraded", "clean", "second")
    }
    batch["task"] = jnp.array([0, 1, 0, 1])
    memory = jax.tree.map(lambda psnr: psnr + 20, objective.memory)
    names = [name for _, name in objective.terms]

    def alone(params):  # what FLOPs are counted of
        return objective.alone()(nnx.merge(graphdef, params), batch, {}, memory)

    loss, metrics = jax.eval_shape(alone, params)
    assert loss.shape == () and metrics.keys() == {"psnr"}

    def terms(params, frozen):
        model = nnx.merge(graphdef, params)
        _, metrics = objective(model, batch, frozen, memory)
        return jnp.stack([metrics[f"loss_{name}"] for name in names])

    @jax.jit
    def gradient(params, frozen, counted):
        return jax.vjp(lambda p: terms(p, frozen), params)[1](counted)[0]

    for name, counted in zip(names, jnp.eye(len(names)), strict=True):
        leaves = jax.tree.leaves(gradient(params, frozen, counted))
        largest = max(float(jnp.abs(leaf).max()) for leaf in leaves)
        assert np.isfinite(largest) and largest > 0, name


@pytest.mark.slow
def test_a_guided_network_restores_what_it_is_shown(files, photographs, tmp_path):
    model = build_model(MODEL, nnx.Rngs(0))
    weights.save(tmp_path / "guided.safetensors", model, {})
    image = photographs["coffee"][:40, :40]
    image_io.write_png(tmp_path / "image.png", image)
    command = ["restore", str(tmp_path / "image.png"), "-o", str(tmp_path / "out")]
    command += ["--weights", str(tmp_path / "guided.safetensors")]
    assert cli.run([*command, "--dinov2", files["dinov2"]]) == cli.DONE
    restored = image_io.read_rgb(tmp_path / "out" / "image.png")

    graphdef, state = nnx.split(model)
    pixels = np.float32(image / 255)[None]
    tokens = dinov2.load(files["dinov2"]).semantics(pixels)
    told = jax.jit(lambda s, x, t: nnx.merge(graphdef, s)(x, semantics=t))
    expected = np.clip(np.asarray(told(state, pixels, tokens))[0] * 255, 0, 255)
    assert np.abs(restored - expected).max() < 0.6
    others = np.asarray(told(state, pixels, -tokens))[0] * 255
    assert np.abs(others - expected).max() > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "guided by a DINOv2 of width 64, which is no part of them"),
        ("clip", "clip.safetensors is no DINOv2"),
    ],
)
def test_a_guided_network_without_what_guides_it_is_refused(files, given, message):
    model = build_model(MODEL, nnx.Rngs(0))
    with pytest.raises(UserError, match=message):
        Restorer(model, dinov2=files[given] if given else None)
    with pytest.raises(UserError, match="wants no semantics"):
        Restorer(tiny.light(), dinov2=files["dinov2"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance.dinov2": ""}, "semantics='dinov2' needs config.guidance.dinov2"),
        ({"guidance.prompts": ""}, "clip_quality in config.loss needs .*prompts"),
        ({"guidance.vgg16": ""}, "difficulty in config.loss needs .*vgg16"),
        ({"loss": "l1 + contrastive"}, "guidance.clip=.* is for clip_quality in"),
        ({"data.tasks": ()}, "unknown task in config.guidance.proxies=.*'jpeg 10'"),
        ({"data.tasks": ("jpeg",)}, "unknown task in config.guidance.proxies=.*"),
        ({"model.semantic_dim": 32}, "class tokens of 64, and the network .* by 32"),
    ],
)
def test_guidance_that_does_not_go_with_the_rest_is_refused(
    config, tmp_path, changes, message
):
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()
