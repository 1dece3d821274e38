"""The training command as a user starts it: real processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from programs import printed, simulated
from test_experiment import CONFIGS
from test_train import assert_same_params, lines

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "cir_jax.main"]


def run(*arguments, **environment):
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        timeout=900,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no config: give --config="),
        (["--config=configs/nothing.py"], "configs/nothing.py"),
        (
            ["--config=configs/quickstart.py", "--config.stepz=3"],
            'Did you mean "steps" instead of "stepz"?',
        ),
        (["--config=configs/quickstart.py", "--config.loss=l2"], "config.loss 'l2'"),
        (["--config=configs/promptcir.py:third"], "give promptcir.py:offline or"),
        (["--config=configs/quickstart.py", "--config.steps=many"], "many"),
        (["--config=configs/quickstart.py", "--wrokdir=x"], "wrokdir"),
        (["--config=configs/quickstart.py", "surplus"], "surplus"),
        (["--config=configs/quickstart.py", "--config.steps=0"], "give at least 1"),
        (["--config=configs/quickstart.py", "--config.model.name=x"], "model 'x'"),
        (
            ["--config=configs/promptcir.py:offline"],
            "records folder data/df2k-lsdir-jpeg7 does not exist: make it with\n"
            "  cir encode --source DF2K_LSDIR --recipe jpeg7",
        ),
        (["--config=configs/promptcir_lite.py"], "cir encode --source DF2K --recipe"),
    ],
)
def test_bad_input_exits_with_2_and_one_sentence(tmp_path, arguments, words):
    workdir = tmp_path / "new"
    result = run(*arguments, f"--workdir={workdir}")
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert not workdir.exists()


def quickstart(workdir, images):
    """Arguments of the quickstart config with the smallest network and few steps."""
    small = {
        "steps": 100,
        "batch_size": 2,
        "log_every": 5,
        "data.patch": 32,
        "evaluation.every": 100,
        "evaluation.images": str(images),
        "evaluation.qualities": (10,),
        "checkpoint.every": 20,
    }
    config = ROOT / "configs" / "quickstart.py"
    program = (
        f"import runpy; get = runpy.run_path({str(config)!r})['get_config']\n"
        "def get_config():\n"
        "    config = get()\n"
        f"    config.model = {tiny.LIGHT!r}\n"
        f"    config.update_from_flattened_dict({small!r})\n"
        "    return config\n"
    )
    path = workdir.parent / f"{workdir.name}.py"
    path.write_text(program)
    return [f"--config={path}", f"--workdir={workdir}"]


@pytest.mark.slow
def test_a_killed_training_ends_like_an_uninterrupted_one(tmp_path, validation):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run(*quickstart(whole, validation))
    assert result.returncode == 0, result.stderr
    assert f"before and after: {whole / 'before_after.png'}" in result.stdout

    arguments = quickstart(killed, validation)
    process = subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, env=os.environ)
    deadline = time.monotonic() + 600
    saved = killed / "checkpoints" / "20"
    while not (saved.is_dir() and any(line["step"] >= 50 for line in lines(killed))):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "scores.json").exists()

    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    resumed = int(re.search(r"(\d+) of 100 steps done", result.stderr)[1])
    assert resumed in (20, 40, 60)
    assert_same_params(whole, killed)
    steps = [line["step"] for line in lines(killed) if "loss" in line]
    assert steps == list(range(5, 101, 5))


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_0(tmp_path, validation):
    workdir = tmp_path / "run"
    arguments = quickstart(workdir, validation)
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=os.environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 600
    while not (workdir / "metrics.jsonl").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.terminate()
    _, complaints = process.communicate()
    assert process.returncode == 0
    last = lines(workdir)[-1]["step"]
    assert f"stopped by SIGTERM; step {last} is saved" in complaints
    assert (workdir / "checkpoints" / str(last)).is_dir()


@pytest.mark.slow
def test_eight_devices_train_like_one(records):
    one = printed("ten_steps.py", records, 1, XLA_FLAGS=simulated(1))
    eight = printed("ten_steps.py", records, -1, XLA_FLAGS=simulated(8))
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert abs(one["losses"][-1] / one["losses"][0] - 1) > 0.01
    assert eight["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for part, size in eight["bytes"].items():  # the network is too small for an eighth
        assert size < one["bytes"][part] / 4


@pytest.mark.slow
def test_every_config_is_set_up_on_eight_devices_and_each_network_lowered():
    parts = printed("lower_configs.py", XLA_FLAGS=simulated(8))
    assert {name.split(":")[0] for name in parts} == {path.name for path in CONFIGS}
    lowered = {name: count for name, count in parts.items() if count}
    assert lowered == {
        "promptcir.py:online": 8,
        "ucip.py:oracle": 8,
        "ucip_prompt_tuning.py": 8,
    }
