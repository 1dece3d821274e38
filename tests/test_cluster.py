"""Several processes train one model, and one goes on with what another has left."""

import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from programs import free_port, simulated
from test_main import COMMAND, ROOT, quickstart
from test_train import lines

from cir_jax import Restorer, image_io

pytestmark = pytest.mark.slow
STEPS = 20


def start(arguments, devices, log, *cluster):
    flags = {"XLA_FLAGS": simulated(devices)}
    return subprocess.Popen(
        [*COMMAND, *arguments, *cluster],
        cwd=ROOT,
        env=os.environ | flags,
        stdout=subprocess.DEVNULL,
        stderr=log.open("w"),
    )


def start_two(arguments, folder):
    """Two processes of four devices each."""
    cluster = [f"--coordinator=localhost:{free_port()}", "--processes=2"]
    return [
        start(arguments, 4, folder / f"log{i}", *cluster, f"--process={i}")
        for i in range(2)
    ]


def losses(workdir):
    return {line["step"]: line["loss"] for line in lines(workdir) if "loss" in line}


def wait_for_step(workdir, step, processes):
    deadline = time.monotonic() + 300
    while not (workdir / "metrics.jsonl").exists() or step not in losses(workdir):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


def arguments_for(workdir, records, images):
    changes = {
        "data.records": records,
        "steps": STEPS,
        "batch_size": 8,
        "log_every": 1,
        "evaluation.every": STEPS,
        "checkpoint.every": 5,
        "checkpoint.keep": 9,
        "mesh.fsdp": 2,
    }
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    return [*quickstart(workdir, images), *flags]


@pytest.fixture(scope="module")
def single(tmp_path_factory, records, validation):
    """What one process of eight devices makes."""
    workdir = tmp_path_factory.mktemp("single") / "run"
    arguments = arguments_for(workdir, records, validation)
    assert start(arguments, 8, workdir.parent / "log").wait(300) == 0
    assert sorted(losses(workdir)) == list(range(1, STEPS + 1))
    return workdir


def test_two_processes_train_like_one_and_survive_what_clusters_do(
    single, tmp_path, records, validation
):
    workdir = tmp_path / "run"
    arguments = arguments_for(workdir, records, validation)
    first, second = start_two(arguments, tmp_path)
    wait_for_step(workdir, 7, (first, second))
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    assert first.wait(120) != 0
    assert time.monotonic() - killed < 60
    assert "distributed service" in (tmp_path / "log0").read_text()

    before = losses(workdir)
    processes = start_two(arguments, tmp_path)
    wait_for_step(workdir, max(before) + 1, processes)
    processes[1].send_signal(signal.SIGTERM)  # as a cluster takes one machine away
    assert [process.wait(120) for process in processes] == [0, 0]
    again = losses(workdir)
    assert (
        f"stopped by SIGTERM; step {max(again)} is saved, and"
        in (tmp_path / "log0").read_text()
    )
    assert (workdir / "checkpoints" / str(max(again))).is_dir()
    assert {step: again[step] for step in before} == before  # bit for bit
    theirs = {step: loss for step, loss in losses(single).items() if step in again}
    assert again == pytest.approx(theirs, rel=1e-5)


def test_other_devices_go_on_like_those_before(single, tmp_path, records, validation):
    workdir = tmp_path / "run"
    shutil.copytree(single, workdir)
    for checkpoint in (workdir / "checkpoints").iterdir():
        if int(checkpoint.name) > STEPS - 10:
            shutil.rmtree(checkpoint)
    arguments = [*arguments_for(workdir, records, validation), "--config.mesh.fsdp=1"]
    workers = "--config.data.workers=2"
    assert start([*arguments, workers], 1, tmp_path / "log").wait(300) == 0
    assert f"{STEPS - 10} of {STEPS} steps done" in (tmp_path / "log").read_text()
    assert losses(workdir) == pytest.approx(losses(single), rel=1e-5)
    assert_restores_alike(workdir, single, validation)


def assert_restores_alike(left, right, images):
    image = np.float32(image_io.read_rgb(images / "coffee.png")) / 255
    left, right = (Restorer(workdir)(image) for workdir in (left, right))
    np.testing.assert_allclose(left, right, atol=1e-4)
