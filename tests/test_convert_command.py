"""`cir convert` on real files, there and back."""

import hashlib
import json
import os
import pickle
import subprocess
import zipfile

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
from cir_jax import cli, state_dicts, torch_file, weights
from cir_jax.convert import official_shapes, to_official
from cir_jax.errors import UserError
from cir_jax.models import abstract_model

INDEX = "relative_position_index_"
TINY = ("promptcir_tiny", "ucip_tiny", "restormer_tiny", "restormer_biasfree_tiny")


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


WRAPPED = {
    "plain": lambda t: t,
    "ema": lambda t: {"params": prefixed("x.", t), "params_ema": t},
    "ema alone": lambda t: {"params_ema": t},
    "parallel": lambda t: {"state_dict": prefixed("module.", t), "epoch": 3},
    "compiled": lambda t: {"model": prefixed("_orig_mod.module.", t)},
    "lightning": lambda t: {
        "state_dict": prefixed("net.", t),
        "optimizer_states": [{"state": {0: {"exp_avg": np.ones(3, np.float32)}}}],
        "pytorch-lightning_version": "2.1.0",
        "callbacks": {},
    },
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
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(flat(contents), path)
    elif path.suffix == ".npz":
        np.savez(path, **flat(contents))
    else:
        torch_file.write(path, contents)
    return path


def convert(*arguments):
    return cli.run(["convert", *map(str, arguments)])


def stored(path):
    """Metadata and tensors."""
    return weights.read(path)


@pytest.fixture(scope="module")
def official():
    return made_up_weights(official_shapes(abstract_model(tiny.MODEL)))


@pytest.fixture(scope="module")
def ours(official, tmp_path_factory):
    """A converted file, compared with the official tensors."""
    folder = tmp_path_factory.mktemp("converted")
    source = write(folder / "official.pth", official)
    assert convert(source) == cli.DONE
    metadata, tensors = stored(folder / "official.safetensors")
    returned = to_official(json.loads(metadata["model"]), tensors)
    assert_same({name: returned[name] for name in official}, official)
    return folder / "official.safetensors"


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        np.testing.assert_array_equal(left[name], tensor, strict=True)


@pytest.mark.parametrize("golden", TINY)
def test_a_converted_file_restores_as_the_official_network(golden, tmp_path):
    goldens, tensors = load(golden)
    source = write(tmp_path / f"{golden}.pth", {"params": tensors})
    assert convert(source) == cli.DONE
    metadata, _ = stored(tmp_path / f"{golden}.safetensors")
    assert metadata["source"] == source.name
    assert metadata["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert metadata["converter"].startswith("cir_jax ")
    assert metadata["taken"] == "took 'params'"

    graph, state = nnx.split(cir_jax.load(tmp_path / f"{golden}.safetensors"))
    told = {"codec": jnp.array([0, 4])} if golden == "ucip_tiny" else {}
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x, **told))
    assert_close(run(state, goldens["x"]), goldens["y"])


CASES = [(name, suffix) for name in WRAPPED for suffix in (".pth", ".safetensors")]
CASES.remove(("ema", ".safetensors"))  # has names that no state dict has
CASES += [("plain", ".pt"), ("plain", ".npz")]


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
        assert "took 'params_ema', left params aside" in said
    if wrapping == "parallel":
        assert "names without 'module.'" in said


def test_the_way_back_is_a_strict_loaders(official, ours, tmp_path):
    """Index buffers included; and what came back converts to the same again."""
    for name in ("back.pth", "back.safetensors", "back.npz"):
        back = tmp_path / name
        assert convert(ours, "--to-torch", "-o", back, "--entry", "params") == cli.DONE
        returned = state_dicts.read(back).tensors
        indices = [returned.pop(INDEX + which) for which in ("SA", "OCA")]
        assert {x.dtype.name for x in indices} == {"int64"}
        assert_same(returned, official)
    again = tmp_path / "again.safetensors"
    assert convert(tmp_path / "back.pth", "-o", again) == cli.DONE
    assert_same(stored(again)[1], stored(ours)[1])


def test_half_precision_stays_and_loads_as_float32(official, tmp_path):
    half = {name: x.astype(ml_dtypes.bfloat16) for name, x in official.items()}
    out = tmp_path / "half.safetensors"
    assert convert(write(tmp_path / "half.pth", half), "-o", out) == cli.DONE
    _, tensors = stored(out)
    assert {x.dtype.name for x in tensors.values()} == {"bfloat16"}
    loaded = nnx.to_pure_dict(nnx.state(cir_jax.load(out), nnx.Param))
    for name, value in weights.flatten(loaded).items():
        np.testing.assert_array_equal(value, tensors[name].astype(np.float32))


def test_what_shapes_do_not_tell_is_asked_for(tmp_path):
    source = write(tmp_path / "u.pth", made_up_weights(keys("ucip_tiny")))
    names = "jpeg,hm,vtm,psnr,ssim,hific"
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


def without(name):
    return lambda tensors: {n: x for n, x in tensors.items() if n != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("output.weight"), "has no 'output.weight', it is not complete"),
        (without("latent.0.norm2.body.bias"), "- latent.0.norm2.body.bias (32,): not"),
        (lambda t: t | {"x": np.ones(3)}, "+ x (3,): not in the network"),
        (
            lambda t: t | {"latent.0.norm2.body.bias": np.ones((32, 1))},
            "! latent.0.norm2.body.bias: (32, 1), but (32,) in the network",
        ),
        (lambda t: {"conv.weight": np.ones((3, 3))}, "no known network has tensors"),
        (lambda t: {"epoch": 3}, "holds no tensors under params_ema or params"),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_written(
    official, tmp_path, change, words
):
    source = write(tmp_path / "broken.pth", change(official))
    with pytest.raises(UserError) as error:
        convert(source)
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
    result = subprocess.run(
        ["cir", "convert", source], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == cli.WRONG_USE
    assert result.stderr.startswith(f"error: {source}")
    assert "mkdir" in result.stderr and len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.pth"], "nowhere.pth is no file"),
        (["SOURCE", "-o", "x.pth"], "ends in .safetensors"),
        (["SOURCE", "-o", "nowhere/x.safetensors"], "folder does not exist"),
        (["SOURCE", "--variant", "T"], "needs --model"),
        (["SOURCE", "--entry", "ema"], "no tensors under ema; it holds"),
        (["SOURCE", "--model", "restormer", "--variant", "T"], "not in the state dict"),
        (["SOURCE", "--option", "num_tasks=3"], "but (3,) in the network"),
        (["OURS"], "is a weights file of cir_jax already"),
        (["OURS", "--to-torch", "-o", "x.bin"], "ends in .pth or .pt or"),
    ],
)
def test_wrong_use_is_one_sentence(official, ours, tmp_path, arguments, words):
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


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    source = tmp_path / "bomb.npz"
    np.savez_compressed(source, x=np.zeros(20_000_000, np.float32))
    with pytest.raises(UserError, match=r"would unpack to 80,\d+,\d+ bytes, more than"):
        convert(source)
    (tmp_path / "cut.npz").write_bytes(source.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"is not a readable \.npz file"):
        convert(tmp_path / "cut.npz")


def test_the_check_runs_what_was_written(ours, tmp_path, capsys):
    back = tmp_path / "back.pth"
    assert convert(ours, "--to-torch", "-o", back, "--check") == cli.DONE
    first = capsys.readouterr().out.splitlines()[-1]
    assert first.startswith("check: coffee, 128x128 in, 128x128 out, min ")
    out = tmp_path / "again.safetensors"
    assert convert(back, "-o", out, "--check") == cli.DONE
    assert capsys.readouterr().out.splitlines()[-1] == first

    metadata, tensors = stored(out)
    broken = tensors | {"output.kernel": tensors["output.kernel"] * np.nan}
    weights.write(out, broken, metadata)
    assert convert(out, "--to-torch", "--check") == cli.SOME_FAILED
    assert "not finite" in capsys.readouterr().out
