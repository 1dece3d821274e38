import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny
from flax import nnx
from ml_collections import ConfigDict
from programs import printed, simulated
from test_experiment import CONFIGS, QUICKSTART

from cir_jax import collectives, estimate, hardware, plan
from cir_jax.collectives import Collectives

ROOT = Path(__file__).parents[1]


# ------------------------------------------------------------ the text of programs
def test_what_programs_for_eight_devices_send():
    found = printed("collectives_on_devices.py", XLA_FLAGS=simulated(8))
    own = 64 * 256 * 4  # bytes of each device's part
    assert found == {
        "sum": [{"all-reduce": own}, True],
        "two sums": [{"all-reduce": own + own // 2}, True],
        "gather": [{"all-gather": 2 * own}, True],
        "scatter": [{"reduce-scatter": own}, True],
        "exchange": [{"all-to-all": own}, True],
        "pass on": [{"collective-permute": own}, True],
        "known loop": [{"all-reduce": 5 * own}, True],
        "unknown loop": [{"all-reduce": own}, False],
        "branches": [{"all-reduce": own, "collective-permute": own}, True],
        "nothing": [{}, True],
    }


# As the TPU compiler writes them, shortened.
STARTED_AND_AWAITED = """
ENTRY %main.0_spmd (param.1: f32[64,256]) -> f32[64,256] {
  %param.1 = f32[64,256]{1,0:T(8,128)} parameter(0), metadata={op_name="x"}
  %permute = (f32[64,256]{1,0:T(8,128)}, f32[64,256]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, \
u32[]{:S(2)}) collective-permute-start(%param.1), channel_id=1, source_target_pairs={}
  ROOT %done = f32[64,256]{1,0:T(8,128)S(1)} collective-permute-done(%permute)
}
"""
SPLIT = """
ENTRY %main.1_spmd (param: f32[64,256]) -> (f32[64,256], bf16[64,256]) {
  %psum.15 = bf16[64,256]{1,0:T(8,128)(2,1)} all-reduce(%convert.3), channel_id=1, \
replica_groups={{0,1},{2,3}}, use_global_device_ids=true, to_apply=%region_1.0
  %psum.14 = f32[64,256]{1,0:T(8,128)} all-reduce(%copy-done), channel_id=1, \
replica_groups={{0,1},{2,3}}, use_global_device_ids=true, to_apply=%region_0.0
}
"""
FUSED_WITH_WHAT_GOES_ON_MEANWHILE = """
%fused_computation.27 (param_0.62: bf16[512,512]) -> (bf16[512,512], bf16[1024,512]) {
  %all-gather.11 = bf16[1024,512]{1,0:T(8,128)(2,1)} all-gather(%param_0.62), \
channel_id=2, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}
}
%async_collective_fusion.46 (param_0.65: bf16[512,512]) -> (bf16[64,1024]) {
  %all-gather.13 = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.65), \
channel_id=2, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}
}
%fused_computation.29 (param_0.66: bf16[512,512]) -> bf16[1024,512] {
  %all-gather.15 = bf16[1024,512]{1,0:T(8,128)(2,1)} all-gather(%param_0.66), \
channel_id=2, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}
}
ENTRY %main.3_spmd (param: bf16[512,512]) -> bf16[1024,512] {
  %async-collective-start = (bf16[512,512]{1,0:T(8,128)(2,1)S(1)}, \
/*index=5*/u32[]{:S(2)}) fusion(%param), kind=kCustom, calls=%fused_computation.27
  %fusion.46 = (bf16[64,1024]{1,0:T(8,128)(2,1)S(1)}) \
fusion(%get-tuple-element.10), kind=kCustom, calls=%async_collective_fusion.46
  ROOT %async-collective-done = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} \
fusion(%get-tuple-element.20), kind=kCustom, calls=%fused_computation.29
}
"""
SCATTERED_BY_A_SUM = """
%all-reduce-scatter.2 (input_0: bf16[512,1024]) -> bf16[512,512] {
  %all-reduce.9 = bf16[512,1024]{1,0:T(8,128)(2,1)} all-reduce(%input_0), \
channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add.clone
  ROOT %dynamic-slice.13 = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} \
dynamic-slice(%all-reduce.9, %constant.68, %multiply.9), dynamic_slice_sizes={512,512}
}
ENTRY %main.3_spmd (param: bf16[512,1024]) -> bf16[512,512] {
  ROOT %fusion.37 = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} fusion(%param), \
kind=kCustom, calls=%all-reduce-scatter.2
}
"""
TWO_SLICES = """
ENTRY %main.3_spmd (param: bf16[512,1024]) -> bf16[512,1024] {
  %fusion.11 = bf16[512,1024]{1,0:T(8,128)(2,1)S(1)} fusion(%param), kind=kOutput
  %reduce-scatter.2 = bf16[128,1024]{1,0:T(8,128)(2,1)} reduce-scatter(%fusion.11), \
channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add.clone
  %bitcast.4 = bf16[128,8,128]{2,1,0:T(8,128)(2,1)} bitcast(%reduce-scatter.2)
  %send.2 = (bf16[128,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) \
send(%bitcast.4, %after-all.2), channel_id=6, is_host_transfer=true
  %recv.2 = (bf16[128,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) \
recv(%after-all.2), channel_id=1, is_host_transfer=true
  %send-done.2 = token[] send-done(%send.2), channel_id=6, is_host_transfer=true
  %recv-done.2 = (bf16[128,8,128]{2,1,0:T(8,128)(2,1)}, token[]) \
recv-done(%recv.2), channel_id=1, is_host_transfer=true
  %bitcast.5 = bf16[128,1024]{1,0:T(8,128)(2,1)} bitcast(%get-tuple-element.2)
  ROOT %all-gather.12 = bf16[512,1024]{1,0:T(8,128)(2,1)S(1)} all-gather(%bitcast.5), \
channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}
}
"""


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (STARTED_AND_AWAITED, {"collective-permute": 64 * 256 * 4}),
        (SPLIT, {"all-reduce": 64 * 256 * (2 + 4)}),
        (FUSED_WITH_WHAT_GOES_ON_MEANWHILE, {"all-gather": 1024 * 512 * 2}),
        (SCATTERED_BY_A_SUM, {"reduce-scatter": 512 * 1024 * 2}),
        (
            TWO_SLICES,
            {
                "reduce-scatter": 512 * 1024 * 2,
                "between slices": 128 * 1024 * 2,
                "all-gather": 512 * 1024 * 2,
            },
        ),
    ],
)
def test_what_programs_for_tpus_send(text, sizes):
    assert collectives.read(text) == Collectives(sizes)


def test_a_ring_sends_each_part_to_all_but_one():
    each = dict.fromkeys(collectives.PASSES, 100)
    # Of 100 bytes in 4 parts three are passed on, those of a sum twice.
    assert Collectives({"all-reduce": 100}).sent(4) == 150
    assert Collectives({"all-gather": 100}).sent(4) == 75
    assert Collectives(each | {"between slices": 100}).sent(4) == 150 + 4 * 75
    assert Collectives(each).sent(1) == 0


# ------------------------------------------------------------ configs and numbers
def test_every_config_is_planned_in_every_stage():
    names = [Path(name).name for name in plan.shipped()]
    assert {name.split(":")[0] for name in names} == {path.name for path in CONFIGS}
    assert {"promptcir.py:offline", "promptcir.py:online"} <= set(names)
    assert {"ucip.py", "ucip.py:oracle"} <= set(names)
    meant = {name: plan.load(f"{ROOT}/configs/{name}")[1] for name in names}
    assert meant["promptcir.py:online"] == 8 and meant["ucip_lite.py"] == 1
    assert meant["quickstart.py"] is None


@pytest.mark.parametrize(
    ("batch", "accumulate", "meant", "devices", "expected"),
    [
        (32, 1, 8, 8, (32, "32 on 8")),
        (32, 1, 8, 4, (16, "32 on 8")),
        (16, 1, 1, 8, (128, "16 on 1")),
        (4, 1, None, 8, (8, "4 in all")),
        (20, 1, None, 8, (24, "20 in all")),
        (10, 1, 8, 8, (16, "10 on 8")),
        (32, 3, 8, 8, (48, "32 on 8")),
    ],
)
def test_the_batch_fits_the_devices(batch, accumulate, meant, devices, expected):
    config = ConfigDict({"batch_size": batch, "accumulate": accumulate})
    note = plan.fit_batch(config, meant, devices)
    assert (config.batch_size, note) == expected


PLAN = plan.Plan(
    config="some",
    where="v5e:2x4",
    mesh={"data": 4, "fsdp": 2},
    batch=32,
    note="32 on 8",
    memory=12_000_000_000,
    temporary=11_000_000_000,
    flops=8 * 1.97e12,
    collectives=Collectives({"all-reduce": 800_000_000}),
    estimated=0.02,
)


def test_extrapolation_by_hand():
    # Arithmetic: 1.97e12 FLOP a chip at 197e12/s. Sent: 0.8 GB x 2 x 7/8 at 200 GB/s.
    seconds, share = PLAN.at_best(8)
    assert seconds == pytest.approx(0.010) and share == pytest.approx(0.7)
    # Ten times as many bytes take longer than the arithmetic: 8 GB x 2 x 255/256.
    more = dataclasses.replace(PLAN, collectives=Collectives({"all-reduce": 8 * 10**9}))
    seconds, share = more.at_best(256)
    assert seconds == pytest.approx(0.0796875) and share == 1


def test_the_tables_say_that_nothing_ran():
    text = plan.report([PLAN], ["other, v5e:2x2: does not fit"])
    first, second = (line for line in text.splitlines() if line.startswith("| some"))
    assert text.startswith("Compiled, not run (jax")
    assert "Not compiled: other, v5e:2x2: does not fit\n" in text
    assert re.sub(" +", " ", first) == (
        "| some | v5e:2x4 | 4 x 2 | 32 (config: 32 on 8) | 12 GB, 11 GB temporary | "
        "15.8 T | all-reduce 800 MB | 20 ms |"
    )
    assert re.sub(" +", " ", second) == (
        "| some | v5e:2x4 | 4 | 10 ms, 3.2 k/s, 70.0% | 10 ms, 25.6 k/s, 78.8% | "
        "10 ms, 102 k/s, 79.7% |"
    )
    loops = dataclasses.replace(PLAN, collectives=Collectives({"all-to-all": 8}, False))
    assert "| at least all-to-all 8 B |" in re.sub(" +", " ", plan.report([loops]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/nothing.py"], "configs/nothing.py does not exist"),
        (["--config=configs/promptcir.py:third"], "give promptcir.py:offline or"),
        (["--set=batch=3"], "did you mean 'config.batch_size'"),
        (["--set=rematerialise"], "give it as FIELD=VALUE"),
        (["--set=rematerialise=block"], "'blocks'"),
        (["--devices=0"], "at least 1"),
        (["--forward=128"], "--forward 128: give height and width"),
        (["--forward=64x64"], "--model or --config"),
        (["--forward=64x64", "--model=promptcr"], "did you mean 'promptcir'"),
        (["--forward=64x64", "--model=promptcir:XS"], "'XT'"),
        (["--forward=64x64", "--model=ucip", "--batch=0"], "--batch 0"),
        (["--forward=64x64", "--model=ucip", "--slices=2"], "of one device"),
        (["--forward=64x64", "--model=ucip", "--set=seed=1"], "--config instead"),
        (["--forward=60x64", "--model=restormer:XT"], "multiples of 8"),
        (["--model=promptcir:XT"], "are for --forward"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert plan.main(arguments) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ") and words in complaint
    assert complaint.count("\n") == 1


def test_all_configs_are_those_of_the_clone_it_runs_in(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plan.main([]) == 2
    assert "run it in a clone's" in capsys.readouterr().err


# ------------------------------------------------------------ the command
@pytest.fixture
def config(tmp_path):
    """A config for two GPUs, and with a mesh that does not fit as its stage "bad"."""
    path = tmp_path / "small.py"
    path.write_text(
        '"""Hardware: 2 GPUs."""\n'
        f"import runpy; get = runpy.run_path({str(QUICKSTART)!r})['get_config']\n"
        "def get_config(stage='good'):\n"
        "    config = get()\n"
        f"    config.model = {tiny.LIGHT!r}\n"
        "    config.data.patch = 16\n"
        "    config.mesh.fsdp = 3 if stage == 'bad' else 1\n"
        "    return config\n"
    )
    return path


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cir_jax.plan", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=900,
    )


def flops(path, **changes):
    """Of a step of 16 images."""
    config, _ = plan.load(str(path), [f"{name}={v}" for name, v in changes.items()])
    config.batch_size = 16
    return estimate.lowered_step(*plan.training(config, jax.devices()[:1]))[1]


@pytest.mark.slow
def test_what_saves_memory_is_no_work_for_the_model(config, monkeypatch):
    once = flops(config)
    assert once > 0
    assert flops(config, accumulate=2, rematerialise="blocks") == once

    def none_such(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", none_such)
    assert flops(config) == once
    assert flops(config, accumulate=2) == 0


def cells(text):
    """The rows of the first table, without their head."""
    table = text.split("\n\n")[1].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def size():
    """What the gradient takes, and loss and PSNR."""
    params = nnx.state(tiny.light(), nnx.Param)
    return 4 * (sum(x.size for x in jax.tree.leaves(params)) + 2)


@pytest.mark.slow
def test_the_command_goes_on_after_what_fails(config):
    result = run(f"--config={config}:bad", f"--config={config}")
    assert result.returncode == 1, result.stderr
    sentence = "small:bad, 8 simulated CPUs: config.mesh.fsdp=3 does not divide"
    assert sentence in result.stderr and f"Not compiled: {sentence}" in result.stdout
    ((name, *where, batch, memory, flop, sent, milliseconds),) = cells(result.stdout)
    assert (name, *where) == ("small", "8 simulated CPUs", "8 x 1")
    assert batch == "16 (config: 4 on 2)"
    assert (
        "MB temporary" in memory
        and flop == hardware.count(flops(config))
        and not milliseconds
    )
    assert sent == f"all-reduce {hardware.count(size(), 'B')}"


@pytest.mark.slow
def test_a_tpu_that_is_not_here(config):
    pytest.importorskip("libtpu")
    result = run(f"--config={config}", "--topology=v5e:2x2", "--slices=2", "--fsdp=-1")
    assert result.returncode == 0, result.stderr
    ((_, where, mesh, batch, memory, flop, sent, milliseconds),) = cells(result.stdout)
    assert (where, mesh, batch) == ("v5e:2x2 x 2", "2 x 4", "16 (config: 4 on 2)")
    assert "MB temporary" in memory and flop == hardware.count(flops(config))
    assert "all-gather" in sent and "between slices" in sent
    assert milliseconds.endswith(" ms")


@pytest.mark.slow
def test_fsdp_stays_within_a_slice_of_tpus():
    pytest.importorskip("libtpu")
    program = (
        "import json; from cir_jax import parallel, plan\n"
        "devices = plan.topology('v5e:2x2', slices=2)\n"
        "meshes = {n: parallel.make_mesh(n, devices).devices for n in (1, 2, 4, -1)}\n"
        "print(json.dumps({n: [[d.slice_index for d in row] for row in mesh]"
        " for n, mesh in meshes.items()}))\n"
    )
    command = [sys.executable, "-c", program]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    meshes = json.loads(result.stdout.splitlines()[-1])
    assert meshes == {
        "1": [[0]] * 4 + [[1]] * 4,
        "2": [[0, 0]] * 2 + [[1, 1]] * 2,
        "4": [[0] * 4, [1] * 4],
        "-1": [[0] * 4, [1] * 4],
    }
