"""Codec and quality of images, in Python and through the commands."""

import json
import re

import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image

from cir_jax import cli, weights
from cir_jax.errors import UserError
from cir_jax.identify import PATCH, Identifier
from cir_jax.models import abstract_model

CODECS = ("jpeg 1 100", "hevc 51 0")
SMALL = {
    "name": "dagn_features",
    "feature_dim": 4,
    "feature_blocks": 1,
    "codecs": CODECS,
    "adversarial": False,
}
DAGN = SMALL | {"name": "dagn", "dim": 4, "blocks": 1}
del DAGN["adversarial"]


def made_up(config):
    """A model with parameters that nothing has to be compiled for."""
    model, random = abstract_model(config), np.random.default_rng(0)
    shapes = weights.flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    tensors = {name: random.normal(0, 0.2, x.shape) for name, x in shapes.items()}
    return weights.filled(model, tensors, "made up")


@pytest.fixture(scope="module")
def model():
    return made_up(SMALL)


@pytest.fixture(scope="module")
def identifier(model):
    return Identifier(model)


def telling(model, logits, qualities):
    """The model with a head that tells this of every image."""
    model = nnx.clone(model)
    out = model.sensitive.head.out
    out.kernel[...] = np.zeros_like(out.kernel[...])
    out.bias[...] = np.array([*logits, *qualities], np.float32)
    return model


@pytest.fixture(scope="module")
def told_weights(model, tmp_path_factory):
    """Weights that take every image for JPEG 75."""
    path = tmp_path_factory.mktemp("weights") / "features.safetensors"
    told = telling(model, (0, 20, 0), (74 / 99, 0.5))
    weights.save(path, told, {})
    return path


def noise(height, width, channels=3, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, channels), np.uint8)


def test_an_estimate_is_the_mean_over_patches(model, identifier):
    """Against the encoder on each patch alone, cut out by hand."""
    image = noise(300, 400)
    graphdef, params = nnx.split(model.sensitive)

    @jax.jit
    def identify(patch):
        told = nnx.merge(graphdef, params).identify(patch[None] / 255)
        return jax.nn.softmax(told.logits)[0], told.qualities[0]

    # 300 pixels are two parts of 150, 400 are three of 133, and starts are cut to 16.
    told = [
        identify(image[y : y + 128, x : x + 128].astype(np.float32))
        for y in (0, 160)
        for x in (0, 128, 256)
    ]
    known, qualities = (np.mean(values, axis=0) for values in zip(*told, strict=True))
    estimate = identifier(image)
    assert list(estimate.probabilities) == ["none", "jpeg", "hevc"]
    found = list(estimate.probabilities.values())
    np.testing.assert_allclose(found, known, atol=1e-6)
    assert estimate.codec == ["none", "jpeg", "hevc"][int(known.argmax())]
    assert estimate.probability == max(found)
    expected = {
        "none": None,
        "jpeg": 1 + 99 * np.clip(qualities[0], 0, 1),
        "hevc": 51 - 51 * np.clip(qualities[1], 0, 1),
    }[estimate.codec]
    assert estimate.quality == pytest.approx(expected, abs=1e-4)
    assert identifier(image) == estimate


def test_one_program_does_for_images_of_all_sizes(model, caplog):
    identifier = Identifier(model)
    sizes = ((1, 1), (7, 500), (128, 128), (130, 127), (600, 90), (2000, 3000))
    with jax.log_compiles():
        for height, width in sizes:
            estimate = identifier(np.full((height, width, 3), 90, np.uint8))
            assert sum(estimate.probabilities.values()) == pytest.approx(1)
    compiled = [r for r in caplog.records if "Compiling jit(apply)" in r.getMessage()]
    assert len(compiled) == 1


def test_small_images_are_mirrored(identifier):
    image = noise(50, 100)
    mirrored = np.concatenate([image, image[::-1], image[:28]])
    mirrored = np.concatenate([mirrored, mirrored[:, :-29:-1]], axis=1)
    assert mirrored.shape == (PATCH, PATCH, 3)
    assert identifier(image) == identifier(mirrored)


def test_pixels_of_all_types_tell_the_same(identifier):
    image = noise(64, 64)
    told = [
        list(identifier(x).probabilities.values())
        for x in (image, image.astype(np.uint16) * 257, np.float32(image) / 255)
    ]
    np.testing.assert_allclose(told[1:], [told[0]] * 2, atol=1e-6)


def test_a_grey_encoder_sees_luma():
    identifier = Identifier(made_up(SMALL | {"channels": 1}))
    image = noise(40, 40)
    weighted = np.float64(image) / 255 @ (65.481, 128.553, 24.966) + 16
    luma = np.float32(weighted / 255)[..., None]
    found, expected = (
        list(identifier(x).probabilities.values()) for x in (image, luma)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("logits", "qualities", "codec", "quality", "words"),
    [
        ((0, 9, 0), (74 / 99, 0), "jpeg", 75, "jpeg 100%, quality 75 (1 to 100)"),
        ((0, 9, 0), (-0.3, 1), "jpeg", 1, "jpeg 100%, quality 1 (1 to 100)"),
        ((0, 0, 9), (0, 29 / 51), "hevc", 22, "hevc 100%, quality 22 (51 to 0)"),
        ((0, 0, 9), (0, 1.5), "hevc", 0, "hevc 100%, quality 0 (51 to 0)"),
        ((2, 0, 1), (0.5, 0.5), "none", None, "no codec 67%"),
    ],
)
def test_qualities_are_the_codecs_own(model, logits, qualities, codec, quality, words):
    estimate = Identifier(telling(model, logits, qualities))(noise(8, 8))
    assert estimate.codec == codec and str(estimate) == words
    expected = np.exp(logits) / np.exp(logits).sum()
    assert estimate.probability == pytest.approx(expected.max(), abs=1e-5)
    if quality is None:
        assert estimate.quality is None
        assert estimate.to_json().keys() == {"codec", "probability", "probabilities"}
    else:
        assert estimate.quality == pytest.approx(quality, abs=1e-3)
        assert [estimate.worst, estimate.best] == [
            int(end) for end in CODECS[["jpeg", "hevc"].index(codec)].split()[1:]
        ]


@pytest.mark.parametrize(
    ("shape", "words"), [((8, 0, 3), "(8, 0, 3)"), ((8, 8, 1), "(8, 8, 1)")]
)
def test_what_is_no_image_is_refused(identifier, shape, words):
    message = f"expected an image of shape [h, w, 3], got {words}"
    with pytest.raises(UserError, match=re.escape(message)):
        identifier(np.zeros(shape, np.uint8))


def test_models_without_a_sensitive_encoder_are_refused(tmp_path):
    with pytest.raises(UserError, match="these weights have no sensitive encoder"):
        Identifier(tiny.Filter())
    path = tmp_path / "w.safetensors"
    weights.save(path, made_up(DAGN | {"guidance": "none"}), {})
    with pytest.raises(UserError, match=r"w\.safetensors have no sensitive encoder"):
        Identifier(path)


def test_a_dagn_that_is_guided_by_one_has_it(model):
    guided = abstract_model(DAGN | {"guidance": "sensitive"})
    nnx.update(guided.sensitive, nnx.state(model.sensitive, nnx.Param))
    assert Identifier(guided)(noise(9, 9)) == Identifier(model)(noise(9, 9))


@pytest.fixture
def images(tmp_path):
    """A JPEG, the same as PNG in a folder below, and one that breaks off."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    jpeg = folder / "a.jpg"
    Image.fromarray(noise(40, 60)).save(jpeg, quality=75)
    with Image.open(jpeg) as image:
        image.save(folder / "below" / "b.png")
    (folder / "cut.jpg").write_bytes(jpeg.read_bytes()[:-200])
    return folder


def test_a_line_for_each_image(images, told_weights, tmp_path, capsys):
    out = tmp_path / "found.json"
    words = ["identify", str(images), str(images / "a.jpg")]  # which is there already
    words += ["--weights", str(told_weights), "--json", str(out)]
    assert cli.run(words) == cli.SOME_FAILED
    captured = capsys.readouterr()
    shown = "pixels: jpeg 100%, quality 75 (1 to 100)"
    assert captured.out.splitlines() == [
        f"{images}/a.jpg: JPEG 4:2:0, quality 75; {shown}",
        f"{images}/below/b.png: PNG; {shown}",
    ]
    (failed,) = captured.err.splitlines()
    assert failed.startswith(f"failed: {images}/cut.jpg cannot be decoded (")
    content = json.loads(out.read_text())
    assert content["weights"] == str(told_weights)
    jpeg, png, cut = content["images"]
    assert jpeg["input"] == f"{images}/a.jpg" and jpeg["status"] == "identified"
    facts = {"quality": 75, "standard": True, "subsampling": "4:2:0"}
    assert jpeg["jpeg"] == facts and png["container"] == "PNG" and "jpeg" not in png
    assert jpeg["estimate"] == png["estimate"]
    assert png["estimate"]["quality"] == pytest.approx(75, abs=1e-3)
    assert cut["status"] == "failed" and cut["reason"] in failed
    assert cli.run([*words, "--allow-truncated"]) == cli.DONE
    (*_, last) = capsys.readouterr().out.splitlines()
    assert last == f"{images}/cut.jpg: JPEG 4:2:0, quality 75; {shown}"


def test_without_weights_the_files_alone_are_read(images, capsys):
    (images / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    assert cli.run(["identify", str(images)]) == cli.SOME_FAILED
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"{images}/a.jpg: JPEG 4:2:0, quality 75",
        f"{images}/below/b.png: PNG",
    ]
    note, failed = captured.err.splitlines()
    assert "needs --weights with a sensitive encoder" in note
    assert failed.startswith(f"failed: {images}/cut.jpg ")
    assert cli.run(["identify", str(images / "a.jpg")]) == cli.DONE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.png"], r"nowhere\.png does not exist: give image files or folders"),
        (["empty"], "empty holds no image"),
        (["a.png", "--json", "a.png"], r"--json a\.png is one of the images"),
        (["a.png", "--json", "no/f.json"], "its folder does not exist"),
        (["a.png", "--max-megapixels", "0"], "0.0: give a finite number above 0"),
        (["a.png", "--weights", "b"], "weights 'b' are neither a file"),
    ],
)
def test_wrong_use_is_named(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (8, 8)).save("a.png")
    with pytest.raises(UserError, match=message):
        cli.run(["identify", *words])


@pytest.fixture
def restore(images, told_weights, tmp_path, monkeypatch):
    """Runs `cir restore --identify` on the images; gives the report's rows by name."""
    monkeypatch.setattr(weights, "load_average", lambda names, dtype: tiny.Filter())

    def run():
        words = ["restore", str(images), "-o", str(tmp_path / "out")]
        words += ["--weights", "filter", "--identify", str(told_weights)]
        report = tmp_path / "report.json"
        assert cli.run([*words, "--report", str(report)]) == cli.SOME_FAILED
        content = json.loads(report.read_text())
        assert content["identify"] == str(told_weights)
        length = len(f"{images}/")
        return {row["input"][length:]: row for row in content["images"]}

    return run


def test_a_restoration_reports_how_images_were_compressed(restore):
    rows = restore()
    jpeg, png = rows["a.jpg"]["identified"], rows["below/b.png"]["identified"]
    assert rows["a.jpg"]["status"] == "restored"
    assert jpeg["container"] == "JPEG" and jpeg["jpeg"]["quality"] == 75
    assert png.keys() == {"container", "estimate"}
    assert png["estimate"]["codec"] == "jpeg"
    assert rows["cut.jpg"]["status"] == "failed"
    assert "identified" not in rows["cut.jpg"]
    assert all("identified" not in row for row in restore().values())  # now skipped


def test_an_estimate_stops_no_restoration(restore, monkeypatch):
    def fail(identifier, image):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(Identifier, "__call__", fail)
    row = restore()["a.jpg"]
    assert row["status"] == "restored"
    assert row["identified"]["jpeg"]["quality"] == 75
    assert "estimate" not in row["identified"]
    assert "cannot be identified with this memory" in row["identified"]["reason"]
