import re

import jax
import numpy as np
import pytest
from flax import nnx
from golden_weights import assert_close, load_encoder

from cir_jax import weights
from cir_jax.encoders import dinov2
from cir_jax.errors import UserError
from cir_jax.ops.bicubic import resize_bicubic

HEADS = 4  # of width 8, not 64, as in the tiny network


@pytest.fixture(scope="module")
def golden():
    return load_encoder("dinov2_tiny")


@pytest.fixture(scope="module")
def file(golden, tmp_path_factory):
    """As newer programs of Hugging Face name the tensors."""
    path = tmp_path_factory.mktemp("dinov2") / "model.safetensors"
    weights.write(path, golden[1], {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def model(file):
    return dinov2.load(file, heads=HEADS)


def jitted(model, method, *arguments):
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, *a: method(nnx.merge(graph, state), *a))
    return run(state, *arguments)


def test_every_layer_equals_the_official_one(model, golden):
    arrays, _ = golden

    def run(model, image):
        return model.hidden(image), model(image)

    hidden, last = jitted(model, run, arrays["x"])
    assert len(hidden) == len(arrays["hidden"]) == 5
    for ours, theirs in zip(hidden, arrays["hidden"], strict=True):
        assert_close(ours, theirs)
    assert_close(last, arrays["y"])


def test_at_another_size_position_embeddings_are_interpolated(model, golden):
    arrays, _ = golden
    last = jitted(model, dinov2.DINOv2.__call__, arrays["x_other_size"])
    assert_close(last, arrays["y_other_size"])


def test_semantics_are_class_tokens_of_the_resized_image(model):
    image = np.random.default_rng(0).random((2, 30, 50, 3), np.float32)
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

    def run(model, image):
        small = (resize_bicubic(image, 224, 224) - np.float32(mean)) / np.float32(
            deviation
        )
        return model.semantics(image, (1, 4, 0)), model.hidden(small)

    semantics, hidden = jitted(model, run, image)
    assert semantics.shape == (3, 2, 32)
    for ours, layer in zip(semantics, (1, 4, 0), strict=True):
        assert_close(ours, hidden[layer][:, 0])


def released(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As released: attention inside attention, a classifier beside the network."""
    changes = [
        (r"attention\.([qkv])_proj", r"attention.attention.\1_proj"),
        ("q_proj", "query"),
        ("k_proj", "key"),
        ("v_proj", "value"),
        (r"attention\.o_proj", "attention.output.dense"),
    ]
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, new in changes:
            name = re.sub(pattern, new, name)
        renamed[f"dinov2.{name}"] = tensor
    return renamed | {"classifier.weight": np.zeros((5, 64), np.float32)}


def test_the_released_names_give_the_same_network(model, golden, tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = released(golden[1])
    assert "dinov2.encoder.layer.3.attention.attention.value.bias" in tensors
    weights.write(path, tensors, {})
    ours, theirs = (
        weights.parameters(m) for m in (dinov2.load(path, heads=HEADS), model)
    )
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_it_computes_in_bfloat16(file, golden):
    arrays, _ = golden
    model = dinov2.load(file, heads=HEADS, dtype=jax.numpy.bfloat16)
    hidden = jitted(model, dinov2.DINOv2.hidden, arrays["x"])
    assert {x.dtype for x in hidden} == {jax.numpy.dtype("bfloat16")}
    assert_close(hidden[-1].astype("float32"), arrays["hidden"][-1], 0.03)
    kernel = model.blocks[0].mlp.fc1.kernel
    assert kernel.dtype == "float32"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("embeddings.position_embeddings"), "no DINOv2, it has no ten"),
        (
            lambda t: t.pop("encoder.layer.2.norm2.bias"),
            r"- encoder.layer.2.norm2.bias",
        ),
        (lambda t: t.update(extra=np.zeros(3)), r"\+ extra"),
        (
            lambda t: t.update({"layernorm.bias": np.zeros(3)}),
            r"! layernorm.bias: \(3,\), but \(32,\)",
        ),
        (lambda t: t.update({"layernorm.bias": np.full(32, np.nan)}), "not finite"),
        (
            lambda t: t.update({"embeddings.position_embeddings": np.zeros((10, 32))}),
            "odd shapes",
        ),
        (
            lambda t: t.update({"embeddings.cls_token": np.zeros((1, 0, 32))}),
            "no numbers in embeddings.cls_token",
        ),
    ],
    ids=["no sizes", "missing", "extra", "shape", "nan", "odd", "empty"],
)
def test_other_files_are_refused(change, words, golden, tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = dict(golden[1])
    change(tensors)
    weights.write(path, tensors, {})
    with pytest.raises(UserError, match=words) as error:
        dinov2.load(path, heads=HEADS)
    assert str(path) in str(error.value)


def test_wrong_use_is_one_sentence(file, model, tmp_path):
    with pytest.raises(
        UserError, match=r"download model\.safetensors of facebook/dino"
    ):
        dinov2.load(tmp_path / "absent.safetensors")
    with pytest.raises(
        UserError, match="0 attention heads do not divide a width of 32"
    ):
        dinov2.load(file)
    with pytest.raises(UserError, match="height 28 and width 30: DINOv2 takes mult"):
        model.hidden(jax.numpy.zeros((1, 28, 30, 3)))
    with pytest.raises(UserError, match="this DINOv2 has 4 layers"):
        model.semantics(np.zeros((1, 30, 30, 3), np.float32))
