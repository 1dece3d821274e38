import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny
from flax import nnx

import cir_jax
from cir_jax import weights
from cir_jax.errors import UserError


@pytest.fixture
def path(tmp_path, weights_file):
    return Path(shutil.copy(weights_file, tmp_path / weights.WORKDIR_NAME))


def params(model):
    return weights.flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def test_a_model_comes_back_as_it_was_saved(path):
    loaded = params(cir_jax.load(path))
    for name, value in params(tiny.light()).items():
        np.testing.assert_array_equal(loaded[name], value)
    assert list(path.parent.iterdir()) == [path]


def test_stored_in_half_precision_they_load_as_float32(path):
    model = tiny.light()
    weights.save(path, model, {}, "float16")
    for name, value in params(cir_jax.load(path)).items():
        expected = np.float32(np.float16(params(model)[name]))
        np.testing.assert_array_equal(value, expected, strict=True)
    before = path.read_bytes()
    with pytest.raises(UserError, match="unknown storage 'float61': did you mean"):
        weights.save(path, model, {}, "float61")
    model.norm.bias[...] = 1e6
    with pytest.raises(UserError, match=r"norm\.bias has numbers that float16 cannot"):
        weights.save(path, model, {}, "float16")
    assert path.read_bytes() == before


def test_a_workdir_stands_for_its_weights(path):
    assert weights.find(path.parent) == path


def test_other_tools_can_read_the_file(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        names = set(file.keys())
    assert json.loads(metadata["model"]) == json.loads(json.dumps(tiny.light().config))
    assert metadata["step"] == "7"
    assert "blocks.0.blocks.0.atm.proj.kernel" in names


def test_the_compute_dtype_leaves_the_parameters_float32(path):
    model = cir_jax.load(path, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {
        jnp.dtype(jnp.float32)
    }


def rewrite(path, change):
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    change(tensors, metadata)
    safetensors.numpy.save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda tensors, metadata: tensors.pop("norm.bias"),
            r"in 1 of \d+ tensors.*norm\.bias: model \(.*\), file has none",
        ),
        (
            lambda tensors, metadata: tensors.update(extra=np.zeros(3, np.float32)),
            r"extra: model has none, file \(3,\)",
        ),
        (
            lambda tensors, metadata: metadata.pop("model"),
            "does not say which model it is for",
        ),
        (
            lambda tensors, metadata: metadata.update(model='{"name": "prompcir"}'),
            r"weights\.safetensors .*unknown model 'prompcir': did you mean",
        ),
        (
            lambda tensors, metadata: metadata.update(model="{"),
            r"weights\.safetensors is for a model that cannot be built",
        ),
    ],
)
def test_weights_of_another_model_are_refused(path, change, words):
    rewrite(path, change)
    with pytest.raises(UserError, match=words):
        cir_jax.load(path)


def test_what_is_no_weights_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="is not a readable safetensors file"):
        cir_jax.load(path)
    with pytest.raises(UserError, match="neither a file, nor a workdir, nor a shipped"):
        cir_jax.load("best")
    path.unlink()
    with pytest.raises(UserError, match=r"holds no weights\.safetensors"):
        cir_jax.load(path.parent)
