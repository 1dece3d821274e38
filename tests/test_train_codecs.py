"""Training networks that know several codecs: told which, blind, and on a new one."""

import json

import numpy as np
import pytest
import tiny
from test_experiment import QUICKSTART, load
from test_train import params

from cir_jax import cli
from cir_jax.errors import UserError
from cir_jax.train import train_and_evaluate

TOLD = tiny.UCIP | {"scale": 1}


@pytest.fixture(scope="module")
def two_codecs(tmp_path_factory):
    """Records whose versions are of two codecs."""
    folder = tmp_path_factory.mktemp("data")
    recipe = folder / "two.toml"
    recipe.write_text('degradations = ["jpeg 20", "webp 10"]')
    arguments = ["encode", "--recipe", str(recipe), "--crop", "128"]
    assert cli.run([*arguments, "--out", str(folder / "records")]) == cli.DONE
    return folder / "records"


@pytest.fixture
def config(two_codecs, validation):
    config = load(QUICKSTART)
    config.model = TOLD
    config.steps = 4
    config.batch_size = 2
    config.data.records = str(two_codecs)
    config.data.encode_if_missing = False
    config.data.patch = 16
    config.evaluation.images = str(validation)
    config.evaluation.qualities = (20,)
    config.evaluation.every = 4
    config.checkpoint.every = 4
    return config


@pytest.mark.slow
def test_a_grey_network_trains_on_grey_records(config, tmp_path, records):
    config.model = tiny.LIGHT | {"channels": 1}
    config.data.records = str(records)
    with pytest.raises(UserError, match=r"of colour: encode with --grey"):
        train_and_evaluate(config, tmp_path / "run")
    config.data.records = str(tmp_path / "grey")
    arguments = ["encode", "--quality", "20", "--crop", "256", "--grey"]
    assert cli.run([*arguments, "--out", config.data.records]) == cli.DONE
    report = train_and_evaluate(config, tmp_path / "run")
    assert report.protocols == {"crops": "gray"}
    assert report.rows()[1]["gain"] != 0


def evaluated(workdir, folder, *arguments):
    crops = f"crops={folder}"
    fixed = ["evaluate", "--weights", str(workdir), "--set", crops, "--quality", "20"]
    return cli.run([*fixed, *arguments])


@pytest.mark.slow
def test_a_network_that_is_told_the_codec(config, tmp_path, validation, capsys):
    report = train_and_evaluate(config, tmp_path / "run")
    told = f"told the codec: {config.model.name}"
    assert report.rows()[1]["method"] == "ucip" and told in report.table()

    json_file = tmp_path / "scores.json"
    arguments = ["--tell-codec", "--json", str(json_file)]
    assert evaluated(tmp_path / "run", validation, *arguments) == cli.DONE
    again = json.loads(json_file.read_text())["rows"][1]
    assert again["psnr"] == pytest.approx(report.rows()[1]["psnr"], abs=1e-6)

    with pytest.raises(UserError, match=r"'avif' .* know jpeg \(0\), webp \(1\)"):
        evaluated(tmp_path / "run", validation, "--codec", "avif", "--tell-codec")
    restore = ["restore", str(validation), "-o", str(tmp_path / "out")]
    restore += ["--weights", str(tmp_path / "run")]
    with pytest.raises(UserError, match=r"'hevc' was not trained: these weights know"):
        cli.run([*restore, "--codec", "hevc"])
    assert cli.run([*restore, "--codec", "webp"]) == cli.DONE


@pytest.mark.slow
def test_a_mix_of_versions_and_of_clean_crops_is_trained_on(
    config, tmp_path, two_codecs
):
    clean = tmp_path / "clean"
    arguments = ["--source", "photos:validation", "--crop", "256", "--out", str(clean)]
    assert cli.run(["encode", "--recipe", "online:noise", *arguments]) == cli.DONE
    adds = [word for part in (two_codecs, clean) for word in ("--add", "2", str(part))]
    assert cli.run(["mix", *adds, "-o", str(tmp_path / "mix")]) == cli.DONE
    config.data.records = str(tmp_path / "mix")
    config.model = TOLD | {"codecs": ("jpeg", "webp", "noise")}
    report = train_and_evaluate(config, tmp_path / "run")
    assert report.rows()[1]["gain"] != 0


@pytest.mark.parametrize(
    ("codecs", "words"),
    [
        (("jpeg", "webp", "hevc"), r"names hevc, of which the data has no version"),
        (("jpeg",), r"versions by webp, the model knows \('jpeg',\)"),
    ],
)
def test_codecs_and_data_that_differ_are_refused(config, tmp_path, codecs, words):
    config.model = tiny.UCIP | {"scale": 1, "codecs": codecs}
    config.batch_size = 16  # so that the first batch has both
    with pytest.raises(UserError, match=words):
        train_and_evaluate(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_prompt_tuning_changes_what_it_says_bit_for_bit(
    config, tmp_path, validation, capsys
):
    config.model = tiny.LIGHT
    train_and_evaluate(config, tmp_path / "before")
    with pytest.raises(UserError, match="the weights know no codecs"):
        evaluated(tmp_path / "before", validation, "--tell-codec")

    config.init_from = str(tmp_path / "before")
    config.data.qualities = (10,)  # WebP's alone
    before = params(tmp_path / "before")
    config.trainable = ("^prompts/", "/offset_layer/")
    train_and_evaluate(config, tmp_path / "after")
    after = params(tmp_path / "after")
    assert after.keys() == before.keys()
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    named = {n for n in before if n.startswith("prompts.") or ".offset_layer." in n}
    assert changed == named
    count = sum(before[name].size for name in named)
    assert f"{count:,} of them trained" in " ".join(capsys.readouterr().err.split())
