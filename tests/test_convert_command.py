"""`cir convert` on real files, there and back."""

import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny
from flax import nnx
from golden_weights import assert_close, keys, load, made_up_weights

import cir_jax
from cir_jax import cli, convert_command, state_dicts, torch_file, torch_pickle, weights
from cir_jax.convert import official_shapes, to_official
from cir_jax.errors import UserError
from cir_jax.models import abstract_model
from cir_jax.weights import shipping


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def lightning(tensors):
    return {
        "state_dict": prefixed("net.", tensors),
        "optimizer_states": [{"state": {0: {"exp_avg": np.ones(3, np.float32)}}}],
        "pytorch-lightning_version": "2.1.0",
        "callbacks": {},
    }


WRAPPED = {
    "plain": lambda t: t,
    "ema": lambda t: {"params": prefixed("x.", t), "params_ema": t},
    "ema alone": lambda t: {"params_ema": t},
    "parallel": lambda t: {"state_dict": prefixed("module.", t), "epoch": 3},
    "compiled": lambda t: {"model": prefixed("_orig_mod.module.", t)},
    "lightning": lightning,
}


def flat(contents):
    """What of nested entries a file without nesting can hold."""
    tensors = {}
    for name, value in contents.items():
        if isinstance(value, dict):
            tensors |= prefixed(f"{name}.", flat(value))
        elif isinstance(value, np.ndarray):
            tensors[name] = value
    return tensors


def write(path, contents):
    if path.suffix.lower() == ".safetensors":
        safetensors.numpy.save_file(flat(contents), path)
    elif path.suffix == ".npz":
        np.savez(path, **flat(contents))
    elif isinstance(contents, Mapping) and all(isinstance(n, str) for n in contents):
        torch_file.write(path, contents)
    else:
        arrays = []
        program = torch_pickle.dump(contents, arrays)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", program)
            for key, array in enumerate(arrays):
                archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def convert(*arguments):
    return cli.run(["convert", *map(str, arguments)])


def stored(path):
    """Metadata and tensors."""
    return weights.read(path)


@pytest.fixture(scope="module")
def official():
    return made_up_weights(official_shapes(abstract_model(tiny.OFFICIAL)))


@pytest.fixture(scope="module")
def ours(official, tmp_path_factory):
    """A converted file, compared with the official tensors."""
    folder = tmp_path_factory.mktemp("converted")
    assert convert(write(folder / "official.pth", official)) == cli.DONE
    metadata, tensors = stored(folder / "official.safetensors")
    assert_same(to_official(json.loads(metadata["model"]), tensors), official)
    return folder / "official.safetensors"


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        np.testing.assert_array_equal(left[name], tensor, strict=True)


@pytest.mark.parametrize(
    ("golden", "wrapping"),
    [
        ("ucip_tiny", "parallel"),
        ("restormer_biasfree_tiny", "plain"),
        pytest.param("restormer_tiny", "compiled", marks=pytest.mark.slow),
        pytest.param("promptcir_tiny", "ema alone", marks=pytest.mark.slow),
        pytest.param("promptir_full", "lightning", marks=pytest.mark.slow),
    ],
)
def test_a_converted_file_restores_as_the_official_network(golden, wrapping, tmp_path):
    goldens, tensors = load(golden)
    source = write(tmp_path / f"{golden}.pth", WRAPPED[wrapping](tensors))
    assert convert(source) == cli.DONE
    metadata, _ = stored(tmp_path / f"{golden}.safetensors")
    assert metadata["source"] == source.name
    assert metadata["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert metadata["converter"].startswith("cir_jax ")

    graph, state = nnx.split(cir_jax.load(tmp_path / f"{golden}.safetensors"))
    told = {"codec": jnp.array([0, 4])} if golden == "ucip_tiny" else {}
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x, **told))
    assert_close(run(state, goldens["x"]), goldens["y"])


CASES = [(name, suffix) for name in WRAPPED for suffix in (".pth", ".safetensors")]
CASES.remove(("ema", ".safetensors"))  # has names that no state dict has
CASES += [("plain", ".pt"), ("plain", ".npz"), ("plain", ".SafeTensors")]


@pytest.mark.parametrize(("wrapping", "suffix"), CASES)
def test_every_file_and_wrapping_gives_the_same_bits(
    official, ours, tmp_path, capsys, wrapping, suffix
):
    source = write(tmp_path / f"official{suffix}", WRAPPED[wrapping](official))
    assert convert(source, "-o", tmp_path / "ours.safetensors") == cli.DONE
    metadata, tensors = stored(tmp_path / "ours.safetensors")
    assert metadata["model"] == stored(ours)[0]["model"]
    assert_same(tensors, stored(ours)[1])
    said = capsys.readouterr().out
    if wrapping == "ema":
        assert metadata["taken"] == "took 'params_ema', left 'params' aside"
        assert metadata["taken"] in said
    if wrapping == "parallel":
        assert "names without 'module.'" in said


@pytest.mark.parametrize(
    ("wrap", "entry", "words"),
    [
        (lambda t: {"ema": t, "epoch": 3}, "ema", "it holds 'ema', 'epoch': name the"),
        (lambda t: prefixed("ema_model.", t), "ema_model", "as in --entry ema_model"),
        (
            lambda t: {"state_dict": prefixed("a.g.", t) | prefixed("d.", t)},
            "a.g",
            "start with 'a.g.' or 'd.': say",
        ),
    ],
)
def test_the_entry_is_asked_for(official, ours, tmp_path, wrap, entry, words):
    source = write(tmp_path / "x.pth", wrap(official))
    with pytest.raises(UserError) as error:
        convert(source)
    assert words in str(error.value)
    assert convert(source, "--entry", entry) == cli.DONE
    assert_same(stored(tmp_path / "x.safetensors")[1], stored(ours)[1])


@pytest.mark.parametrize("suffix", convert_command.OFFICIAL_SUFFIXES)
def test_the_way_back_gives_the_same_bits(official, ours, tmp_path, suffix):
    back = tmp_path / f"back{suffix}"
    assert convert(ours, "--to-torch", "-o", back, "--entry", "params") == cli.DONE
    returned = state_dicts.read(back)
    assert returned.taken == "took 'params'"
    assert_same(returned.tensors, official)
    assert convert(back, "-o", tmp_path / "again.safetensors") == cli.DONE
    assert_same(stored(tmp_path / "again.safetensors")[1], stored(ours)[1])


def test_the_way_back_has_the_index_buffers_that_strict_loaders_want(tmp_path):
    tensors = made_up_weights(official_shapes(abstract_model(tiny.MODEL)))
    ours, back = tmp_path / "official.safetensors", tmp_path / "back.pth"
    assert convert(write(tmp_path / "official.pth", tensors)) == cli.DONE
    assert convert(ours, "--to-torch", "-o", back) == cli.DONE
    returned = torch_file.read(back)
    indices = [returned.pop(f"relative_position_index_{x}") for x in ("SA", "OCA")]
    assert {x.dtype.name for x in indices} == {"int64"}
    assert_same(returned, tensors)
    assert convert(back, "-o", ours, "--overwrite") == cli.DONE


def test_a_workdir_has_a_way_back_too(official, ours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / weights.WORKDIR_NAME
    own.write_bytes(ours.read_bytes())
    assert convert(".", "--to-torch") == cli.DONE
    assert_same(torch_file.read(tmp_path / "weights.pth"), official)
    with pytest.raises(UserError, match="is the checkpoint"):
        convert(".", "--to-torch", "-o", own, "--overwrite")

    package = tmp_path / "package"
    package.mkdir()
    own.rename(package / "best.safetensors")
    monkeypatch.setattr(shipping, "FOLDER", package)
    assert convert("best", "--to-torch") == cli.DONE
    assert (tmp_path / "best.pth").is_file()


def test_half_precision_stays_and_loads_as_float32(official, tmp_path):
    half = {name: x.astype(ml_dtypes.bfloat16) for name, x in official.items()}
    out = tmp_path / "half.safetensors"
    assert convert(write(tmp_path / "half.pth", half), "-o", out) == cli.DONE
    _, tensors = stored(out)
    assert {x.dtype.name for x in tensors.values()} == {"bfloat16"}
    loaded = nnx.to_pure_dict(nnx.state(cir_jax.load(out), nnx.Param))
    for name, value in weights.flatten(loaded).items():
        np.testing.assert_array_equal(value, tensors[name].astype(np.float32))
    with pytest.raises(UserError, match=r"\.npz cannot hold bfloat16"):
        convert(out, "--to-torch", "-o", tmp_path / "half.npz")


@pytest.mark.parametrize("names", ["jpeg,hm", "7,6"])
def test_what_shapes_do_not_tell_is_asked_for(official, tmp_path, names):
    source = write(tmp_path / "u.pth", official)
    assert convert(source, "--model", "ucip", "--option", f"codecs={names}") == cli.DONE
    assert cir_jax.load(tmp_path / "u.safetensors").known_codecs == tuple(
        names.split(",")
    )
    with pytest.raises(UserError, match="holds ucip, not restormer"):
        convert(source, "--model", "restormer", "--overwrite")


def test_others_tensors_are_dropped_only_when_asked(official, tmp_path):
    extra = prefixed("net.", official) | {"loss.vgg.weight": np.ones(3, np.float32)}
    source = write(tmp_path / "x.pth", {"state_dict": extra})
    with pytest.raises(UserError, match=r"\n\+ loss\.vgg\.weight \(3,\): not in"):
        convert(source)
    assert convert(source, "--drop", "loss.*") == cli.DONE


def test_names_are_any_bytes(official, tmp_path):
    source = write(tmp_path / os.fsdecode(b"a b\xff.pth"), official)
    assert convert(source) == cli.DONE
    assert stored(source.with_suffix(".safetensors"))[0]["source"] == r"a b\xff.pth"


def without(name):
    return lambda tensors: {n: x for n, x in tensors.items() if n != name}


def replaced(name, value):
    return lambda tensors: tensors | {name: value}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("norm.bias"), "- norm.bias (8,): not in the state dict"),
        (replaced("x", np.ones(3)), "+ x (3,): not in the network"),
        (
            replaced("norm.bias", np.ones((8, 1))),
            "! norm.bias: (8, 1), but (8,) in the network",
        ),
        (
            replaced("norm.bias", np.ones(8, np.int64)),
            "! norm.bias: int64 numbers, but floating ones",
        ),
        (
            replaced("norm.bias", np.float32([0, 1, np.nan, -np.inf, 2, 3, 4, 5])),
            "! norm.bias: 2 of 8 numbers are not finite",
        ),
        (lambda t: {"conv.weight": np.ones((3, 3))}, "no known network has tensors"),
        (lambda t: {"epoch": 3}, "holds no tensors under params_ema or params"),
        (lambda t: {}, "it holds nothing: name the entry"),
        (lambda t: list(t.values()), "holds one list, not tensors by their names"),
        (lambda t: t["norm.bias"], "holds one tensor, not tensors by their names"),
        (lambda t: dict(enumerate(t.values())), "a tensor is called 0: expected"),
        (replaced("a\n\x1b[31m", np.ones(3)), r"is called 'a\n\x1b[31m': expected"),
        (
            lambda t: prefixed("module.", t) | {"norm.bias": np.ones(8)},
            "norm.bias is there twice, with and without a wrapper's 'module.'",
        ),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_written(
    official, tmp_path, change, words
):
    source = write(tmp_path / "broken.pth", change(official))
    with pytest.raises(UserError) as error:
        convert(source)
    assert str(error.value).startswith(str(source))
    assert words in str(error.value)
    assert list(tmp_path.iterdir()) == [source]


class Hostile:
    """A pickle that makes a file when it is loaded, and says where it comes from."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_hostile_file_is_refused_by_the_command_and_runs_nothing(tmp_path):
    source = tmp_path / "hostile.pth"
    with zipfile.ZipFile(source, "w") as archive:
        pickled = pickle.dumps({"state_dict": Hostile(tmp_path / "canary")}, 2)
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    command = [sys.executable, "-c", "from cir_jax import cli; cli.main()", "convert"]
    result = subprocess.run(
        [*command, source], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == cli.WRONG_USE
    assert result.stderr.startswith(f"error: {source}")
    assert "mkdir" in result.stderr and len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.pth"], "nowhere.pth is no file"),
        (["."], ". is no file"),
        (["SOURCE", "-o", "x.pth"], "ends in .safetensors"),
        (["SOURCE", "-o", "nowhere/x.safetensors"], "folder does not exist"),
        (["SOURCE", "--variant", "T"], "needs --model"),
        (["SOURCE", "--entry", "ema"], "no tensors under ema; it holds"),
        (["SOURCE", "--model", "restormer", "--variant", "T"], "not in the state dict"),
        (["SOURCE", "--option", "bases=3"], "but (3,) in the network"),
        (["SOURCE", "--option", "depths=(2,'x')"], "ucip cannot be built of"),
        (["OURS"], "is a weights file of cir_jax already"),
        (["OURS", "--to-torch", "-o", "x.bin"], "ends in .pth or .pt or"),
        (["OURS", "--to-torch", "--drop", "x"], "--drop is for official checkpoints"),
        (["SOURCE", "--against", "m.py:Net"], "--against runs PyTorch, which is not"),
    ],
)
def test_wrong_use_is_one_sentence(
    official, ours, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.setitem(sys.modules, "torch", None)
    source = write(tmp_path / "source.pth", official)
    paths = {"SOURCE": str(source), "OURS": str(ours)}
    out = [] if "-o" in arguments else ["-o", tmp_path / "out.safetensors"]
    with pytest.raises(UserError) as error:
        convert(*(paths.get(word, word) for word in arguments), *out)
    assert words in str(error.value)
    assert list(tmp_path.iterdir()) == [source]


def test_an_existing_output_is_left_alone(ours):
    before = ours.read_bytes()
    with pytest.raises(UserError, match="exists: give another by -o, or --overwrite"):
        convert(ours.with_suffix(".pth"))
    with pytest.raises(UserError, match="is the checkpoint"):
        convert(ours, "-o", ours, "--overwrite")
    assert ours.read_bytes() == before


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "npz"])
def test_a_full_disk_is_said_and_leaves_nothing(official, ours, tmp_path, suffix):
    source = write(tmp_path / "source.pth", official)
    back = [] if suffix == "safetensors" else ["--to-torch"]
    out = tmp_path / f"out.{suffix}"
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        with pytest.raises(OSError) as error:
            convert(ours if back else source, *back, "-o", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (error.value.filename, "too large" in error.value.strerror) == (
        str(out),
        True,
    )
    assert list(tmp_path.iterdir()) == [source]


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    source = tmp_path / "bomb.npz"
    np.savez_compressed(source, x=np.zeros(20_000_000, np.float32))
    with pytest.raises(UserError, match=r"would unpack to 80,\d+,\d+ bytes, more than"):
        convert(source)


def test_what_is_no_npz_archive_is_refused(official, tmp_path):
    whole = write(tmp_path / "whole.npz", official).read_bytes()
    np.save(tmp_path / "array.npy", np.ones(3))
    central = whole.index(b"PK\1\2")
    encrypted = bytearray(whole)
    encrypted[6], encrypted[central + 8] = 1, 1
    for contents in (
        whole[:5000],
        bytes(encrypted),
        (tmp_path / "array.npy").read_bytes(),
        b"",
    ):
        (tmp_path / "x.npz").write_bytes(contents)
        with pytest.raises(UserError, match=r"x\.npz is not a readable \.npz file"):
            convert(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("dtype", "shape", "words"),
    [
        ("F8_E4M3", [4], "has numbers of a type that NumPy lacks"),
        ("F32", [2**62, 0, 1], "is not a readable safetensors file"),
        ("F32", [2], "is not a readable safetensors file"),
    ],
)
def test_what_numpy_cannot_hold_is_refused(tmp_path, dtype, shape, words):
    end = 0 if 0 in shape else 4
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}
    header = json.dumps({"x": tensor}).encode()
    source = tmp_path / "x.safetensors"
    source.write_bytes(len(header).to_bytes(8, "little") + header + bytes(end))
    with pytest.raises(UserError, match=words):
        convert(source, "-o", tmp_path / "y.safetensors")


PROGRAM = """
import sys, time
from cir_jax import cli
start = time.monotonic()
status = cli.run(["convert", *sys.argv[1:]])
peak = next(line.split()[1] for line in open("/proc/self/status") if "VmHWM" in line)
print(status, peak, time.monotonic() - start)
"""


@pytest.mark.slow
def test_a_full_checkpoint_takes_seconds_and_less_than_a_gigabyte(tmp_path):
    """With the optimizer's moments beside it, and back."""
    tensors = made_up_weights(keys("promptcir_full"))
    moments = [{"exp_avg": x, "exp_avg_sq": x} for x in tensors.values()]
    contents = lightning(tensors) | {"optimizer_states": [{"state": moments}]}
    source = write(tmp_path / "full.pth", contents)
    ours = tmp_path / "full.safetensors"
    del tensors, moments, contents
    for arguments in ([source], [ours, "--to-torch", "-o", tmp_path / "back.pth"]):
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        status, kibibytes, seconds = map(float, result.stdout.splitlines()[-1].split())
        print(f"{arguments[0].name}: {kibibytes / 976.6:.0f} MB, {seconds:.1f} s")
        assert status == cli.DONE
        assert kibibytes * 1024 < 1e9
        assert seconds < 60


def test_the_check_runs_what_was_written(ours, tmp_path, capsys):
    back = tmp_path / "back.pth"
    assert convert(ours, "--to-torch", "-o", back, "--check") == cli.DONE
    first = capsys.readouterr().out.splitlines()[-1]
    assert first.startswith("check: coffee, 128x128 in, 128x128 out, min ")
    out = tmp_path / "again.safetensors"
    assert convert(back, "-o", out, "--check") == cli.DONE
    assert capsys.readouterr().out.splitlines()[-1] == first

    metadata, tensors = stored(out)
    for name in ("head.conv_hr.kernel", "head.conv_last.kernel"):
        tensors[name] = tensors[name] * np.float32(1e30)
    weights.write(out, tensors, metadata)
    assert convert(out, "--to-torch", "--check") == cli.SOME_FAILED
    assert "check: FAILED, not all of" in capsys.readouterr().out
