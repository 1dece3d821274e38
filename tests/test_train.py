import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from golden_weights import made_up_weights
from test_experiment import QUICKSTART, load

from cir_jax import Restorer, cli, estimate, image_io, torch_file, weights
from cir_jax.checkpoints import Checkpoints
from cir_jax.compression import compressions
from cir_jax.convert import from_state_dict, official_shapes
from cir_jax.errors import UserError
from cir_jax.evaluate import evaluate
from cir_jax.metrics_log import MetricsLog
from cir_jax.models import abstract_model
from cir_jax.objectives import Restoration
from cir_jax.optimizers import Turn
from cir_jax.train import initial_model, train_and_evaluate
from cir_jax.train_step import TrainState, make_step

SLOW = pytest.mark.slow


def small_config(records, validation):
    """The quickstart experiment with the smallest network, for a few steps."""
    config = load(QUICKSTART)
    config.model = tiny.LIGHT
    config.steps = 6
    config.batch_size = 2
    config.data.records = str(records)
    config.data.encode_if_missing = False
    config.data.patch = 32
    config.evaluation.images = str(validation)
    config.evaluation.qualities = (10,)
    config.evaluation.every = 4
    config.checkpoint.every = 2
    config.log_every = 1
    return config


@pytest.fixture
def config(records, validation):
    return small_config(records, validation)


def params(model):
    if not isinstance(model, nnx.Module):
        model = weights.load(model)
    return weights.flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def assert_same_params(left, right):
    """Of two models, weights files or workdirs."""
    left, right = params(left), params(right)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name])


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, records, validation):
    """A workdir whose training ran through."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    config = small_config(records, validation)
    config.tensorboard = True
    return workdir, train_and_evaluate(config, workdir)


def test_a_training_leaves_weights_scores_a_picture_and_a_log(finished):
    workdir, report = finished
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "before_after.png",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "runs.jsonl",
        "scores.json",
        "tensorboard",
        "weights.safetensors",
    }
    (events,) = (workdir / "tensorboard").iterdir()
    assert b"gradient_norm" in events.read_bytes()
    assert b"evaluation_psnr" in events.read_bytes()
    run = json.loads((workdir / "runs.jsonl").read_text())
    assert run["devices"] == ["cpu"]
    assert run["packages"]["jax"] == jax.__version__
    assert {"command", "git_commit", "started", "python", "processes"} < run.keys()
    log = lines(workdir)
    steps = [line["step"] for line in log if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert all(10 < line["psnr"] < 50 for line in log if "loss" in line)
    assert all(0 <= line.get("waiting_for_data", 0) <= 1 for line in log)
    assert [line["step"] for line in log if "evaluation" in line] == [4, 6]
    scores = json.loads((workdir / "scores.json").read_text())
    assert scores["rows"] == log[-1]["evaluation"] == report.rows()


def test_the_exported_weights_are_what_was_scored(finished, validation):
    workdir, report = finished
    sets = {"crops": {"coffee": image_io.read_rgb(validation / "coffee.png")}}
    again = evaluate({"again": Restorer(workdir)}, sets, compressions("jpeg", (10,)))
    assert again.rows()[1]["psnr"] == report.rows()[1]["psnr"]


def test_a_finished_training_only_scores_again(finished, config):
    workdir, report = finished
    before = lines(workdir)
    assert train_and_evaluate(config, workdir).rows()[1]["psnr"] == pytest.approx(
        report.rows()[1]["psnr"]
    )
    assert lines(workdir)[: len(before)] == before


def test_an_interrupted_training_ends_like_an_uninterrupted_one(
    finished, config, tmp_path, monkeypatch
):
    """SIGTERM in the middle: saved, returned, resumed, the same bit for bit."""
    original = Checkpoints.save

    def save_and_terminate(self, step, state, score):
        original(self, step, state, score)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_terminate)
        assert train_and_evaluate(config, tmp_path) is None
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert train_and_evaluate(config, tmp_path) is not None
    assert_same_params(tmp_path, finished[0])
    ours, theirs = (
        [line["loss"] for line in lines(workdir) if "loss" in line]
        for workdir in (tmp_path, finished[0])
    )
    assert ours == theirs


def damage(folder, how):
    """Breaks the largest file below a folder."""
    path = max(folder.rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    else:
        content[len(content) // 2] ^= 255
        path.write_bytes(content if how == "flipped" else content[:100])


@pytest.mark.parametrize(
    "how",
    ["cut", pytest.param("flipped", marks=SLOW), pytest.param("missing", marks=SLOW)],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    finished, config, tmp_path, capsys, how
):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    damage(workdir / "checkpoints/6", how)
    with pytest.raises(UserError, match=r"checkpoint .*/6 is damaged \(.*of 4$"):
        cli.run(["export", str(workdir)])
    assert train_and_evaluate(config, workdir) is not None
    said = " ".join(capsys.readouterr().err.split())
    assert "checkpoints/6 is damaged (" in said
    assert "damaged_checkpoint_6 now, and step 4 is gone on from" in said
    assert (workdir / "damaged_checkpoint_6").is_dir()
    assert_same_params(workdir, finished[0])
    assert Checkpoints(workdir / "checkpoints", keep=2).steps == [4, 6]


def test_where_all_checkpoints_are_damaged_nothing_is_done(finished, config, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    for step in (4, 6):
        damage(workdir / f"checkpoints/{step}", "cut")
    with pytest.raises(UserError, match=r"/6 does not fit .* or is damaged \("):
        train_and_evaluate(config, workdir)
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"4", "6"}


def test_checkpoints_are_exported(finished, tmp_path, capsys):
    workdir, _ = finished
    out = tmp_path / "newest.safetensors"
    assert cli.run(["export", str(workdir), "-o", str(out)]) == cli.DONE
    assert f"averaged weights of step 6: {out}" in capsys.readouterr().out
    assert_same_params(out, workdir)
    assert weights.title(out) == weights.title(workdir)
    out = tmp_path / "older.safetensors"
    assert cli.run(["export", str(workdir), "-o", str(out), "--step", "4"]) == cli.DONE
    assert any(np.any(params(out)[n] != x) for n, x in params(workdir).items())
    with pytest.raises(UserError, match="no checkpoint of step 5; it has 4, 6"):
        cli.run(["export", str(workdir), "--step", "5"])
    with pytest.raises(UserError, match=r"holds no config\.json: give the workdir"):
        cli.run(["export", str(tmp_path)])


class Untouchable:
    """A metric that may only be waited for until it is asked for."""

    touchable = False

    def __init__(self, value):
        self.value = value

    def block_until_ready(self):
        self.value.block_until_ready()
        return self

    def __array__(self, *arguments, **options):
        assert Untouchable.touchable, "a step's metric left the device"
        return np.asarray(self.value)

    __float__ = item = __array__


def test_nothing_leaves_or_enters_the_devices_inside_the_step(
    config, tmp_path, monkeypatch
):
    """But at steps that log, and for the batches, which are sent ahead."""
    lowered_step, flush = estimate.lowered_step, MetricsLog.flush

    def guarded(*arguments):
        lowered, flops = lowered_step(*arguments)
        program = lowered.compile()

        def run(*arguments):
            with jax.transfer_guard("disallow"):
                state, metrics = program(*arguments)
            return state, {name: Untouchable(x) for name, x in metrics.items()}

        run.compile, run.memory_analysis = lambda: run, program.memory_analysis
        return run, flops

    def touching_flush(log, *arguments):
        Untouchable.touchable = True
        try:
            return flush(log, *arguments)
        finally:
            Untouchable.touchable = False

    monkeypatch.setattr(estimate, "lowered_step", guarded)
    monkeypatch.setattr(MetricsLog, "flush", touching_flush)
    config.log_every = config.evaluation.every = config.checkpoint.every = 3
    assert train_and_evaluate(config, tmp_path, profile=True) is not None
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [3, 6]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    with pytest.raises(AssertionError, match="left the device"):
        float(Untouchable(jnp.zeros(())))
    refused = pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-dev")
    with jax.transfer_guard("disallow"), refused:
        jax.jit(jnp.negative)(np.ones(3))


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["loss", "gradient_norm"])
def test_what_is_not_finite_stops_with_the_step_and_is_not_saved(
    config, tmp_path, monkeypatch, metric
):
    add = MetricsLog.add

    def add_poisoned(log, step, metrics):
        nan = jnp.nan if step == 4 else 0.0
        add(log, step, metrics | {metric: metrics[metric] + nan})

    config.log_every = 100
    words = rf"{metric.replace('_', ' ')} is nan at step 4.*learning_rate"
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "add", add_poisoned)
        with pytest.raises(UserError, match=words):
            train_and_evaluate(config, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints", keep=2).steps == [2]
    if metric == "loss":  # What the message says to do is possible.
        config.optimizer.learning_rate /= 2
        assert train_and_evaluate(config, tmp_path) is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, r"config\.seed=0, not 1"),
        ({"model": tiny.LIGHT | {"width": 4}}, r"config\.model="),
        ({"loss": "l1"}, r"config\.loss=charbonnier, not l1"),
        ({"data": {"grid_phase": "aligned"}}, r"config\.data\.grid_phase=random"),
    ],
)
def test_the_workdir_of_another_experiment_is_refused(finished, config, change, words):
    config.update(change)
    before = (finished[0] / "weights.safetensors").read_bytes()
    with pytest.raises(UserError, match=words):
        train_and_evaluate(config, finished[0])
    assert (finished[0] / "weights.safetensors").read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(6, {"kernel": jnp.zeros((3, 3))}, None)
    checkpoints.close()
    with pytest.raises(UserError, match=r"/6 does not fit this config's model and"):
        Checkpoints(tmp_path, keep=1).restore({"bias": jnp.zeros(3)})


def test_the_last_and_the_best_checkpoint_are_kept_over_restarts(tmp_path):
    def save(*steps):
        checkpoints = Checkpoints(tmp_path, keep=2)
        for step, psnr in steps:
            checkpoints.save(step, {"step": jnp.int32(step)}, psnr)
        checkpoints.close()
        return checkpoints.steps

    assert save((1, 20.0), (2, 30.0), (3, None), (4, 25.0)) == [2, 3, 4]
    assert save((5, None), (6, 21.0)) == [2, 5, 6]
    assert save((7, 31.0), (8, None)) == [7, 8]
    restored = Checkpoints(tmp_path, keep=2).restore({"step": jnp.int32(0)})
    assert int(restored["step"]) == 8


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("data.records", "nowhere", r"nowhere does not exist: make it with\n  cir enc"),
        ("evaluation.images", "nowhere", "folder nowhere does not exist"),
        ("model", {"name": "promptcri"}, "did you mean 'promptcir'"),
        ("data.qualities", (99,), "has no version of quality 99"),
        ("data.patch", 320, "smaller than config.data.patch=320"),
        ("accumulate", 3, r"accumulate=3 does not divide the 2 images of each dev"),
        ("loss", "l1 + -1 ssim", r"config\.loss='l1 \+ -1 ssim': give each term"),
        ("loss", "l1 + lpip", "unknown config.loss 'lpip'"),
        ("wandb", "cir", r"config\.wandb='cir' needs wandb: pip install"),
        ("mesh.fsdp", 2, r"config\.mesh\.fsdp=2 does not divide the 1 devices"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(
    config, tmp_path, field, value, words
):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=words):
        train_and_evaluate(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_patch_that_the_network_cannot_take_is_refused(config, tmp_path):
    config.model, config.data.patch = tiny.MODEL, 36
    with pytest.raises(UserError, match=r"config\.data\.patch=36 is no multiple of 8"):
        train_and_evaluate(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_truncated_shard_is_named(config, records, tmp_path):
    copy = tmp_path / "records"
    copy.mkdir()
    for path in records.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    shard = next(copy.glob("*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-10])
    config.data.records = str(copy)
    with pytest.raises(UserError, match=rf"{shard.name} is truncated"):
        train_and_evaluate(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_ema_follows_quickly_at_first_and_slowly_later():
    params = {"w": jnp.ones(3)}
    model = tiny.Filter()
    graphdef, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    transformation = optax.sgd(1e-2)
    objective = Restoration(((1.0, "l1"),))
    step = jax.jit(make_step(graphdef, objective, [Turn(transformation)], 0.5))
    zero = jax.tree.map(jnp.zeros_like, params)
    batch = {
        name: np.random.default_rng(seed).integers(0, 256, (1, 8, 8, 3), np.uint8)
        for seed, name in enumerate(("degraded", "clean"))
    }
    for age, decay in ((0, 1 / 10), (4, 5 / 14), (1000, 0.5)):
        moments = (transformation.init(params),)
        state = TrainState(jnp.int32(age), params, moments, zero, {})
        state, _ = step(state, batch, {})
        for average, value in zip(
            jax.tree.leaves(state.ema), jax.tree.leaves(state.params), strict=True
        ):
            np.testing.assert_allclose(average, (1 - decay) * value, rtol=1e-5)


def test_weights_to_start_from(config, weights_file):
    assert_same_params(initial_model(config), tiny.light(config.seed))
    config.seed += 1
    config.init_from = str(weights_file)
    assert_same_params(initial_model(config), weights.load(weights_file))
    config.model = tiny.LIGHT | {"width": 4}
    with pytest.raises(UserError, match=r"holds a model of config .*make them equal"):
        initial_model(config)


def test_official_weights_to_start_from(config, tmp_path):
    official = made_up_weights(official_shapes(abstract_model(tiny.OFFICIAL)))
    torch_file.write(tmp_path / "official.pth", official)
    assert cli.run(["convert", str(tmp_path / "official.pth")]) == cli.DONE
    config.model = tiny.OFFICIAL
    config.init_from = str(tmp_path / "official.safetensors")
    assert_same_params(initial_model(config), from_state_dict(official))
