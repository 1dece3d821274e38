"""The launch files: they parse, name what exists, and their scripts do what they say.

Real bash runs the scripts; what a cluster has, and the training, are stand-ins.
"""

import functools
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sysconfig
import time
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
FILES = ("tpu_vm.sh", "gke_jobset.yaml", "slurm.sbatch", "Dockerfile", "README.md")
TEXTS = {name: (LAUNCH / name).read_text().replace("\\\n", "") for name in FILES}
FLAGS = {"config", "workdir", "coordinator", "processes", "process"}
FLAGS |= {"distributed", "compilation_cache", "profile"}

JOBSET = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
(SLICE,) = JOBSET["spec"]["replicatedJobs"]
JOB = SLICE["template"]["spec"]
POD = JOB["template"]
(CONTAINER,) = POD["spec"]["containers"]


# ---------------------------------------------------------------- what they name
@pytest.mark.parametrize("name", FILES)
def test_training_commands_have_flags_and_configs_that_exist(name):
    start = r"(?:-m cir_jax\.main|cir-cuda|sbatch|tpu_vm\.sh run) (--[^`&\n]*)"
    commands = re.findall(start, TEXTS[name])
    assert commands or name == "Dockerfile"
    config = runpy.run_path(str(ROOT / "configs/promptcir.py"))["get_config"]()
    for flag in re.findall(r"--([\w.]+)", " ".join(commands)):
        if flag.startswith("config."):
            functools.reduce(getattr, flag.split(".")[1:], config)
        else:
            assert flag in FLAGS
    for config, stage in re.findall(r"configs/(\w+\.py)(?::(\w+))?", TEXTS[name]):
        get_config = runpy.run_path(str(ROOT / "configs" / config))["get_config"]
        get_config(*filter(None, [stage]))


def test_the_readme_links_to_every_file():
    links = set(re.findall(r"\]\(([^).][^)]*)\)", TEXTS["README.md"]))  # but ../
    assert links == {path.name for path in LAUNCH.iterdir()} - {"README.md"}


def test_the_jobset_has_what_kubernetes_asks_for():
    assert JOBSET["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert JOBSET["kind"] == "JobSet"
    for name in (JOBSET["metadata"]["name"], SLICE["name"], CONTAINER["name"]):
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert JOBSET["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    assert JOBSET["spec"]["failurePolicy"]["maxRestarts"] >= 1

    chips = CONTAINER["resources"]["limits"]["google.com/tpu"]
    topology = POD["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert JOB["parallelism"] == JOB["completions"]
    assert JOB["parallelism"] * chips == math.prod(map(int, topology.split("x")))
    assert JOB["backoffLimit"] == 0  # or pods would start again without the others
    assert POD["spec"]["restartPolicy"] == "Never"  # what a podFailurePolicy needs
    for rule in JOB["podFailurePolicy"]["rules"]:
        assert rule["onExitCodes"]["containerName"] == CONTAINER["name"]
    assert POD["spec"]["terminationGracePeriodSeconds"] >= 120

    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    mounts = {m["name"]: m["mountPath"] for m in CONTAINER["volumeMounts"]}
    assert volumes.keys() == mounts.keys()
    assert volumes["bucket"]["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert POD["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    assert f"mkdir -p {mounts['bucket']}/" in CONTAINER["args"][0]


# ---------------------------------------------------------------- stand-ins
TRAINING = """
echo "$@" >> "$FAKES/trainings"
trap 'touch saved; exit 0' TERM
sleep 0.02  # so that scores are newer than the start
case $TRAINING in
  done) mkdir -p runs/stage1; touch runs/stage1/scores.json ;;
  stopped) ;;
  waits) touch running; for _ in {1..500}; do sleep 0.01; done ;;
  *) exit "$TRAINING" ;;
esac
"""
GCLOUD = """
echo "${*//$'\\n'/ }" >> "$FAKES/gcloud_calls"
next() { head -n 1 "$FAKES/$1"; sed -i 1d "$FAKES/$1"; }
for argument; do [[ $argument != --command=* ]] || command=${argument#*=}; done
case "$*" in
  *" list "*) next slices ;;
  "storage cp - "*) cat > "$FAKES/code.tar.gz" ;;
  *--command=systemctl*) answer=$(next hosts); [ "$answer" ] && printf "$answer" ;;
  *--command=*) cd "$FAKES/host"; HOME=$PWD bash -c "$command" ;;
esac
"""
FAKES = {
    "python": TRAINING,
    "gcloud": GCLOUD,
    "git": r"printf 'launch/README.md\0'",
    "sudo": 'exec "$@"',
    "systemctl": "echo dead",
    "systemd-run": 'echo "$@" >> "$FAKES/services"',
    "mountpoint": "exit 0",
    "gcsfuse": "",
    "srun": 'exec "${@:3}"',  # after its two options
    "scontrol": 'echo "$@" >> "$FAKES/scontrols"',
    "python3": "",
    "uv": 'mkdir -p .venv/bin; cp "$FAKES/bin/python" .venv/bin; echo uv "$@"',
    "pip": 'echo "$@"',
}


def test_dagns_ablation_trains_both_stages_and_prints_one_table(fakes, tmp_path):
    for name in ("python", "cir"):
        path = fakes / "bin" / name
        path.write_text('#!/usr/bin/env bash\necho "$(basename "$0") $*"\n')
        path.chmod(0o755)
    folder = tmp_path / "ablation"
    script = ["bash", LAUNCH / "dagn_ablation.sh"]
    for form in ("adversarial", "plain"):
        (folder / f"stage1_{form}").mkdir(parents=True)
    command = [*script, folder, "--config.steps=3"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    ran = [line for line in result.stdout.splitlines() if line.startswith("python")]
    trained = [line for line in ran if "cir_jax.main" in line]
    assert len(trained) == 2 + 6 and all("--config.steps=3" in line for line in trained)
    for line in trained:
        file, form = re.search(r"--config=(\S+):(\w+)", line).groups()
        runpy.run_path(str(ROOT / file))["get_config"](form)
    first = [n for n, line in enumerate(ran) if "init_from" in line]
    assert len(first) == 5 and min(first) > 3  # after both first stages and scores
    last = result.stdout.splitlines()[-1]
    assert last.startswith("cir evaluate --weights base=") and "table.md" in last
    for line in trained[2:]:
        assert re.search(r"--workdir=(\S+)", line)[1] in last

    result = subprocess.run(script, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stderr.startswith("error: give a folder")


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    folder = tmp_path / "fakes"
    for name, text in FAKES.items():
        path = folder / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    (folder / "host").mkdir()
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKES", str(folder))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return folder


def bash(*arguments, cwd=ROOT, **environment):
    return subprocess.run(
        ["bash", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=20,
    )


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


# ---------------------------------------------------------------- the scripts
@pytest.mark.parametrize("name", ["tpu_vm.sh", "slurm.sbatch", "gke_jobset.yaml"])
def test_scripts_pass_the_linter(tmp_path, name):
    path = LAUNCH / name
    if name == "gke_jobset.yaml":
        path = tmp_path / "pod.sh"
        path.write_text("#!/usr/bin/env bash\n" + CONTAINER["args"][0])
    assert bash("-n", path).stderr == ""
    path_of = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    if linter := shutil.which("shellcheck", path=path_of):
        result = subprocess.run([linter, path], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout


def tpu_vm(fakes, *arguments, slices=(), hosts=(), **environment):
    """Runs the script: what it printed, and what it asked gcloud to change."""
    for name, answers in {"slices": slices, "hosts": hosts}.items():
        (fakes / name).write_text("".join(f"{answer}\n" for answer in answers))
    environment = {"PROJECT": "p", "BUCKET": "b", "POLL": "0"} | environment
    result = bash(LAUNCH / "tpu_vm.sh", *arguments, **environment)
    kinds = " (create|describe|delete|cp|ssh) (?!.*=systemctl)"
    calls = [re.search(kinds, call) for call in lines(fakes / "gcloud_calls")]
    return result, [call[1] for call in calls if call]


@pytest.mark.parametrize(
    ("slices", "hosts", "calls", "code"),
    [
        (  # new; the second host is found restarted
            ["", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE"],
            [r"dead\ndead", r"running\ndead", r"exited\nrunning", r"exited\nexited"],
            ["cp", "create", "ssh", "ssh", "delete"],
            0,
        ),
        (  # running when the loop comes, preempted
            ["ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE", "ACTIVE"],
            ["running", "dead", "exited"],
            ["cp", "delete", "create", "ssh", "delete"],
            0,
        ),
        (["ACTIVE"], [r"failed\nauto-restart"], ["cp", "ssh", "delete"], 1),
        (["PROVISIONING", "FAILED"], [], ["cp", "describe"], 1),
        # Hosts and gcloud that do not answer are asked again.
        (["ACTIVE", "ACTIVE"], ["", "exited"], ["cp", "delete"], 0),
    ],
)
def test_the_loop_on_a_tpu_slice(fakes, slices, hosts, calls, code):
    result, changes = tpu_vm(fakes, "run", slices=slices, hosts=hosts)
    assert (changes, result.returncode) == (calls, code), result.stderr
    for call in lines(fakes / "gcloud_calls"):
        assert "--project=p" in call
        assert "--zone=us-west4-a --quiet" in call or call.startswith("storage cp")
        assert "--worker=all" in call or " ssh " not in call
        if " create " in call:
            assert "--accelerator-type=v5litepod-16" in call and "--spot" in call
    assert (fakes / "code.tar.gz").stat().st_size


@pytest.mark.parametrize(("training", "code"), [("done", 0), ("stopped", 1), ("2", 2)])
def test_a_host_of_a_tpu_slice_trains(fakes, training, code):
    host = fakes / "host"
    tpu_vm(fakes, "upload")
    result, _ = tpu_vm(fakes, "start", "--config.loss=a b", "--config.steps=2")
    assert result.returncode == 0, result.stderr
    (service,) = lines(fakes / "services")  # the bucket is mounted, says the stand-in
    assert "--unit=cir" in service and service.endswith(f"bash {host}/work.sh")

    (host / "bucket/code").mkdir()
    shutil.copy(fakes / "code.tar.gz", host / "bucket/code/cir.tar.gz")
    (host / ".local/bin").mkdir(parents=True)
    (fakes / "bin/uv").rename(host / ".local/bin/uv")
    result = bash(host / "work.sh", HOME=str(host), TRAINING=training)
    assert result.returncode == code, lines(host / "cir.log")
    assert lines(fakes / "trainings") == [
        "-m cir_jax.main --config=configs/promptcir.py:offline --workdir=runs/stage1 "
        "--distributed=on --config.loss=a b --config.steps=2"
    ]
    assert (host / "bucket/runs/stage1/scores.json").exists() == (training == "done")
    assert "uv pip install --quiet --editable=.[tpu]" in lines(host / "cir.log")


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["run"], {"PROJECT": ""}, "error: PROJECT is not set: give PROJECT="),
        (["run"], {"BUCKET": ""}, "error: BUCKET is not set: give BUCKET="),
        ([], {}, "error: '' is no step: give run, upload"),
    ],
)
def test_wrong_usage_is_one_sentence(fakes, arguments, environment, words):
    result, calls = tpu_vm(fakes, *arguments, **environment)
    assert (result.returncode, calls) == (2, [])
    (line,) = result.stderr.splitlines()
    assert line.startswith(words)


@pytest.mark.parametrize(
    ("training", "code", "requeued"),
    [("done", 0, []), ("stopped", 0, ["requeue 7"]), ("1", 1, [])],
)
def test_slurm_queues_again_what_was_stopped(fakes, tmp_path, training, code, requeued):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    (tmp_path / "runs/stage1").mkdir(parents=True)
    (tmp_path / "runs/stage1/scores.json").touch()  # of an earlier, shorter training
    time.sleep(0.02)
    result = bash(
        LAUNCH / "slurm.sbatch",
        "--config.steps=2",
        cwd=tmp_path,
        TRAINING=training,
        SLURM_JOB_ID="7",
        SLURM_CPUS_PER_TASK="8",
    )
    assert result.returncode == code, result.stderr
    assert lines(fakes / "scontrols") == requeued
    (arguments,) = lines(fakes / "trainings")
    assert arguments.endswith("--config.data.workers=8 --config.steps=2")


def test_the_image_is_built_from_known_instructions():
    instructions = re.findall(r"^(?!#)(\S*) .*", TEXTS["Dockerfile"], re.M)
    known = "FROM ARG WORKDIR RUN COPY USER ENV ENTRYPOINT"
    assert set(instructions) == set(known.split())
    assert instructions[0] == "FROM"


@pytest.mark.parametrize("extra", ["cpu", "cuda", "tpu", "rocm"])
def test_the_image_has_an_extra_that_exists(fakes, extra):
    command = re.search(r"^RUN --mount=\S+ +(.*)", TEXTS["Dockerfile"], re.M)[1]
    result = bash("-c", command, EXTRA=extra)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if extra in extras["optional-dependencies"] or extra == "cpu":
        source = "/source" if extra == "cpu" else f"/source[{extra}]"
        assert result.stdout == f"install --no-cache-dir {source}\n"
    else:
        assert result.returncode == 1
        assert result.stderr == "EXTRA=rocm: give cuda, tpu or cpu\n"


def pod(tmp_path):
    """The pod's command, with folders of its own."""
    (tmp_path / "image").mkdir()
    script = CONTAINER["args"][0].replace("/tmp/", f"{tmp_path}/")
    script = script.replace("/bucket/", f"{tmp_path}/bucket/")
    script = script.replace("ulimit -l", ": ulimit -l")  # takes rights that tests lack
    return [*CONTAINER["command"], script]


@pytest.mark.parametrize(("training", "code"), [("done", 0), ("stopped", 1), ("2", 2)])
def test_a_pod_succeeds_when_the_training_is_done(fakes, tmp_path, training, code):
    shell, *arguments = pod(tmp_path)
    assert shell == "bash"
    result = bash(*arguments, cwd=tmp_path / "image", TRAINING=training)
    assert result.returncode == code, result.stderr


def test_a_pod_that_is_taken_away_saves_and_fails(fakes, tmp_path):
    image = tmp_path / "image"
    process = subprocess.Popen(
        pod(tmp_path), cwd=image, env=os.environ | {"TRAINING": "waits"}
    )
    deadline = time.monotonic() + 10
    while not (image / "running").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)  # as Kubernetes does: the first process alone
    assert process.wait(timeout=10) == 1
    assert (image / "saved").exists()


def test_the_training_writes_the_scores_that_the_scripts_look_for():
    assert '"scores.json"' in (ROOT / "cir_jax/train.py").read_text()
    for name in ("tpu_vm.sh", "gke_jobset.yaml", "slurm.sbatch"):
        assert "/scores.json" in TEXTS[name]
