import jax
import numpy as np
import pytest
from golden_weights import assert_close

from cir_jax import torch_file, weights
from cir_jax.encoders import vgg16
from cir_jax.errors import UserError

LAYERS = [
    *[("conv", 64), "relu"] * 2,
    "pool",
    *[("conv", 128), "relu"] * 2,
    "pool",
    *[("conv", 256), "relu"] * 3,
]
"""Torchvision's first 16."""
FEATURES = (3, 8, 11, 15)


@pytest.fixture(scope="module")
def tensors():
    """Made up, with a deeper layer and a classifier that are left aside."""
    rng = np.random.default_rng(0)
    made, channels = {}, 3
    for i, layer in enumerate([*LAYERS, "pool", ("conv", 32)]):
        if isinstance(layer, tuple):
            shape = (layer[1], channels, 3, 3)
            weight = rng.standard_normal(shape, np.float32)
            made[f"features.{i}.weight"] = weight * np.sqrt(2 / (9 * channels))
            made[f"features.{i}.bias"] = rng.normal(0, 0.1, layer[1])
            channels = layer[1]
    made["classifier.0.weight"] = np.ones((2, 3))
    return {name: np.float32(value) for name, value in made.items()}


def slow_features(tensors, image):
    """In float64, layer by layer as torchvision lists them."""
    windows = np.lib.stride_tricks.sliding_window_view
    x = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    found = []
    for i, layer in enumerate(LAYERS):
        if layer == "relu":
            x = np.maximum(x, 0)
        elif layer == "pool":
            x = windows(x, (2, 2), (1, 2))[:, ::2, ::2].max(axis=(-2, -1))
        else:
            patches = windows(
                np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), (3, 3), (1, 2)
            )
            weight = tensors[f"features.{i}.weight"].astype(np.float64)
            x = np.einsum("bhwcyx,dcyx->bhwd", patches, weight, optimize=True)
            x = x + tensors[f"features.{i}.bias"]
        if i in FEATURES:
            found.append(x)
    return found


@pytest.fixture(scope="module")
def lpips_tensors(tensors):
    """The same weights as our LPIPS files have them, heads and all."""
    convs = [i for i in range(18) if f"features.{i}.weight" in tensors]
    made = {}
    for ours, theirs in enumerate(convs):
        kernel = tensors[f"features.{theirs}.weight"].transpose(2, 3, 1, 0)
        made[f"conv{ours}.kernel"] = kernel
        made[f"conv{ours}.bias"] = tensors[f"features.{theirs}.bias"]
    return made | {"conv1.head": np.ones(64, np.float32)}


def test_both_files_give_the_features_of_the_slow_twin(
    tensors, lpips_tensors, tmp_path
):
    torch_file.write(tmp_path / "vgg16.pth", tensors)
    about = {"lpips": "0.1", "net": "vgg"}
    weights.write(tmp_path / "vgg.safetensors", lpips_tensors, about)
    model = vgg16.load(tmp_path / "vgg16.pth")
    same = vgg16.load(tmp_path / "vgg.safetensors")
    ours, theirs = weights.parameters(model), weights.parameters(same)
    assert ours.keys() == theirs.keys() and len(ours) == 14
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])

    image = np.random.default_rng(1).random((2, 16, 18, 3), np.float32)
    features = model.features(image)
    expected = slow_features(tensors, image)
    assert [x.shape[1:] for x in features] == [
        (16, 18, 64),
        (8, 9, 128),
        (4, 4, 256),
        (4, 4, 256),
    ]
    for found, wanted in zip(features, expected, strict=True):
        assert_close(found, wanted)


def test_it_computes_in_bfloat16(tensors, tmp_path):
    torch_file.write(tmp_path / "vgg16.pth", tensors)
    model = vgg16.load(tmp_path / "vgg16.pth", dtype=jax.numpy.bfloat16)
    assert {x.dtype for x in weights.parameters(model).values()} == {np.dtype("f4")}
    image = np.ones((1, 16, 16, 3), np.float32)
    features = jax.eval_shape(model.features, image)
    assert {str(x.dtype) for x in features} == {"bfloat16"}


def test_other_files_are_refused(tensors, lpips_tensors, tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth .*--net vgg"):
        vgg16.load(path)
    short = {n: x for n, x in tensors.items() if n != "features.7.bias"}
    weights.write(path, short, {})
    with pytest.raises(UserError, match=r"- features\.7\.bias \(128,\)"):
        vgg16.load(path)
    alex = np.zeros((11, 11, 3, 64), np.float32)
    weights.write(path, lpips_tensors | {"conv0.kernel": alex}, {})
    with pytest.raises(UserError, match=r"in 1 of 14 .* convs\.0\.kernel"):
        vgg16.load(path)
    del lpips_tensors["conv3.bias"]
    weights.write(path, lpips_tensors, {})
    with pytest.raises(UserError, match=r"in 1 of 14 .* convs\.3\.bias"):
        vgg16.load(path)
