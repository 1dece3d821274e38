import numpy as np
import pytest

from cir_jax import torch_file, weights
from cir_jax.encoders.prompts import read_prompts, write_prompts
from cir_jax.errors import UserError


@pytest.fixture
def prompts():
    return np.random.default_rng(0).standard_normal((3, 16, 8)).astype(np.float32)


def test_they_come_back(prompts, tmp_path):
    path = tmp_path / "prompts.safetensors"
    write_prompts(path, prompts, {"step": "100"})
    np.testing.assert_array_equal(read_prompts(path), prompts)
    about, _ = weights.read(path)
    assert about == {"prompts": "terrible, mediocre, excellent", "step": "100"}


def official(prompts):
    """Prompts beside what surrounds them, and the tokens that hold their places."""
    return {
        "context": prompts,
        "token_prefix": prompts[:, :1],
        "token_suffix": prompts[:, :5],
        "tokenized_prompts": np.zeros((3, 77), np.int64),
    }


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: {"prompt_learner": official(x), "iteration": 100_000},
        lambda x: {"state_dict": {f"module.{n}": t for n, t in official(x).items()}},
        lambda x: {"learner.ctx": x.astype(np.float16), "scale": x[0, 0]},
    ],
    ids=["official", "wrapped", "other"],
)
def test_official_checkpoints_are_found_out(layout, prompts, tmp_path):
    path = tmp_path / "quality_prompts_100000.pth"
    torch_file.write(path, layout(prompts))
    np.testing.assert_allclose(read_prompts(path), prompts, rtol=1e-3)


def test_what_is_not_clear_is_refused(prompts, tmp_path):
    path = tmp_path / "two.safetensors"
    with pytest.raises(UserError, match="there are no prompts"):
        read_prompts(path)
    weights.write(path, {"a": prompts, "b": prompts, "c": prompts[0]}, {})
    words = r"holds 2 tensors that could be .*'a' \(3, 16, 8\), 'b'.*'c' \(16, 8\)"
    with pytest.raises(UserError, match=words):
        read_prompts(path)
    weights.write(path, {"integers": np.zeros((3, 4, 5), int), "two": prompts[:2]}, {})
    with pytest.raises(UserError, match="holds 0 tensors that could be prompts"):
        read_prompts(path)
