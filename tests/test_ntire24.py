"""The protocol of NTIRE 2024 against a loop that follows its description."""

import functools
import json
import shutil

import numpy as np
import pytest
import tiny

from cir_jax import Restorer, cli, evaluate_command, image_io, ntire24, weights
from cir_jax.errors import UserError
from cir_jax.ntire24 import NAME, Ntire24Restorer

PAIR = [tiny.Filter(0), tiny.Filter(1)]


@pytest.fixture(scope="module")
def restorer():
    return Ntire24Restorer(PAIR)


def noise(height, width, channels=3, seed=0):
    """Mostly black and white, so that restored values leave [0, 1]."""
    random = np.random.default_rng(seed)
    values = random.normal(0.5, 1, (height, width, channels)).clip(0, 1)
    return np.float32(values)


@functools.cache
def whole_restorer(network):
    return Restorer(network, tile=None)


def official(networks, image, multiple=32):
    """The mean of the predictions for an image of floats: slow, and whole at once."""
    height, width, _ = image.shape
    missing = [(0, multiple - size % multiple) for size in (height, width)]
    padded = np.pad(image, [*missing, (0, 0)], mode="symmetric")
    predictions = []
    for network in networks:
        whole = whole_restorer(network)
        for axes in ((0, 1, 2), (1, 0, 2)):
            x = np.ascontiguousarray(padded.transpose(axes))
            h, w, _ = x.shape
            t = min(384, h, w)
            sums, counts = np.zeros(x.shape), np.zeros((h, w, 1))
            if t <= 96:
                sums, counts = whole(x), 1
            else:
                for top in [*range(0, h - t, t - 96), h - t]:
                    for left in [*range(0, w - t, t - 96), w - t]:
                        place = slice(top, top + t), slice(left, left + t)
                        sums[place] += whole(np.ascontiguousarray(x[place]))
                        counts[place] += 1
            predictions.append(np.clip(sums / counts, 0, 1).transpose(axes))
    return np.mean(predictions, axis=0)[:height, :width]


@pytest.mark.parametrize(
    "size",
    [
        (192, 128),  # multiples of 32 get 32 more
        (1, 1),
        (95, 400),  # no tiles
        (300, 64),
        (96, 300),  # the smallest tiles, of which four lie over each other
        (100, 900),
        (400, 384),
        (400, 700),
    ],
)
def test_images_of_all_sizes(restorer, size):
    image = noise(*size)
    restored = restorer(image)
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, official(PAIR, image), atol=1e-6)


def test_the_tiles_that_are_batched():
    restorer, image = Ntire24Restorer(PAIR), noise(130, 400)
    restorer.batch = 4
    np.testing.assert_allclose(restorer(image), official(PAIR, image), atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_checkpoints(count):
    networks = [tiny.Filter(seed) for seed in range(count)]
    image = noise(130, 150)
    expected = official(networks, image)
    np.testing.assert_allclose(Ntire24Restorer(networks)(image), expected, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_networks(channels):
    networks = [tiny.GreyFilter(0), tiny.GreyFilter(1)]
    image = noise(130, 150, channels)
    expected = official(networks, image)
    np.testing.assert_allclose(Ntire24Restorer(networks)(image), expected, atol=1e-6)


@pytest.mark.parametrize("multiple", [24, 128])
def test_networks_of_another_multiple(multiple, monkeypatch):
    monkeypatch.setattr(tiny.Filter, "multiple", multiple)
    image = noise(130, 390)
    expected = official(PAIR, image, np.lcm(32, multiple))
    np.testing.assert_allclose(Ntire24Restorer(PAIR)(image), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_are_rounded_once(restorer, dtype):
    most = np.iinfo(dtype).max
    image = np.round(noise(97, 130) * most).astype(dtype)
    restored = restorer(image)
    assert restored.dtype == dtype
    expected = most * official(PAIR, np.float32(image) / np.float32(most))
    assert np.abs(restored - expected).max() <= 0.5 + 1e-6 * most


def test_a_program_for_each_size_of_tiles():
    restorer = Ntire24Restorer(PAIR)
    restorer.compile(400, 500)
    for size in ((400, 500), (700, 390)):
        restorer(noise(*size))
    assert [key[1:] for key in restorer._programs] == [(1, 384, 384, 3)]


@pytest.mark.parametrize(
    ("size", "side"), [((352, 400), 384), ((100, 9999), 128), ((95, 9999), None)]
)
def test_the_tiles_that_a_report_names(restorer, size, side):
    assert restorer.common_grid(9999, 9999).side(*size) == side


def test_networks_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(tiny.Filter, "multiple", 40)
    with pytest.raises(UserError, match="scale 1 and multiple 40"):
        Ntire24Restorer(PAIR)
    monkeypatch.setattr(tiny.Filter, "scale", 4)
    with pytest.raises(UserError, match="not one of scale 4"):
        Ntire24Restorer(PAIR)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two weights files of one network."""
    model, folder = tiny.light(), tmp_path_factory.mktemp("weights")
    paths = [folder / f"{step}.safetensors" for step in range(2)]
    for step, path in enumerate(paths):
        model.head.conv_last.bias[...] = 0.04 * step
        weights.save(path, model, {"step": str(step)})
    return list(map(str, paths))


def test_a_folder(pair, tmp_path, capsys):
    names = ("32.png", "40.png")
    for name in names:
        pixels = image_io.to_uint8(noise(int(name[:2]), 40))
        image_io.write_png(tmp_path / "in" / name, pixels)
    arguments = ["restore", f"{tmp_path}/in", "-o", f"{tmp_path}/out"]
    arguments += ["--weights", ",".join(pair), "--protocol", NAME]
    ntire24._tell_of_one_piece.cache_clear()
    assert cli.run([*arguments, "--report", f"{tmp_path}/report.json"]) == cli.DONE
    messages = capsys.readouterr().err
    assert "tiles: at most 384x384, overlap 96" in messages
    assert messages.count("restored in one piece") == 1
    restorer = Ntire24Restorer(pair)
    for name in names:
        before, after = (
            image_io.read_rgb(tmp_path / folder / name) for folder in ("in", "out")
        )
        np.testing.assert_array_equal(after, restorer(before))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["protocol"] == NAME
    assert [row.get("tile") for row in report["images"]] == [None, None]


def test_an_evaluation(pair, validation, tmp_path, capsys):
    record = tmp_path / "record.md"

    def rows(*flags):
        path = tmp_path / "scores.json"
        arguments = ["evaluate", "--set", f"s={validation}", "--quality", "10"]
        arguments += ["--weights", f"both={'+'.join(pair)}", *flags]
        arguments += ["--json", str(path), "--record", str(record)]
        assert cli.run(arguments) == cli.DONE
        scores = json.loads(path.read_text())
        return scores["protocol"], {r["method"]: r["psnr"] for r in scores["rows"]}

    protocol, ours = rows()
    assert protocol["sha256 of both"].startswith("mean of ")
    assert (protocol["tiling"], protocol["self-ensemble"]) == ("none", "no")
    protocol, theirs = rows("--protocol", f"colour,{NAME}")
    assert len(protocol["sha256 of both"].split(" and ")) == 2
    assert protocol["protocol"].startswith("colour: ")
    assert "next multiple of 32, by 32 where it is one" in protocol["padding"]
    assert protocol["self-ensemble"].startswith(f"{NAME}: every checkpoint x")
    assert ours["none"] == theirs["none"] and ours["both"] != theirs["both"]
    recorded = record.read_text()
    assert recorded.count("| both ") == 2 and recorded.count(f"colour,{NAME}") == 1


def test_a_plus_in_a_path_is_no_ensemble(pair, tmp_path):
    path = tmp_path / "c++" / "net.safetensors"
    path.parent.mkdir()
    shutil.copy(pair[0], path)
    assert evaluate_command._weights(f"net={path}", {}) == {"net": [path]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("restore --protocol gray", f"unknown protocol 'gray': known are {NAME}"),
        ("restore --protocol promptcir", f"did you mean '{NAME}'"),
        (f"restore --protocol {NAME} --strength 0.5", "--strength does not go with"),
        (f"restore --protocol {NAME} --self-ensemble", "--self-ensemble does not go"),
        (f"restore --protocol {NAME} --tile 64", "--tile does not go with"),
        (f"evaluate --protocol {NAME} --tile 64", "--tile does not go with"),
        (f"evaluate --protocol {NAME} --self-ensemble", "--self-ensemble does not go"),
        ("evaluate --protocol gray,promptcir", f"did you mean '{NAME}'"),
        (f"evaluate --protocol gray,{NAME},y", "give one name of how to measure"),
    ],
)
def test_wrong_use_is_named(pair, validation, tmp_path, words, message):
    command, *flags = words.split()
    if command == "restore":
        flags += [str(validation), "-o", str(tmp_path / "out"), "--weights", pair[0]]
    with pytest.raises(UserError, match=message):
        cli.run([command, *flags])
