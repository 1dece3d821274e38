import importlib.util
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from cir_jax import experiment
from cir_jax.errors import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
QUICKSTART = next(path for path in CONFIGS if path.stem == "quickstart")


def load(path: Path, *arguments: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_has_the_fields_that_are_read(path):
    experiment.check(load(path))
    assert len(path.read_text().splitlines()) <= 80
    assert "python -m cir_jax.main --config=configs/" in path.read_text()


def test_promptcirs_second_stage_starts_where_the_first_ends():
    path = next(path for path in CONFIGS if path.stem == "promptcir")
    first, second = load(path, "offline"), load(path, "online")
    experiment.check(second)
    assert f"--workdir={second.init_from}" in path.read_text()
    assert second.model == first.model
    assert second.data.records != first.data.records
    with pytest.raises(ValueError, match="offline"):
        load(path, "third")


@pytest.fixture
def config():
    return load(QUICKSTART)


def set_field(config, name, value):
    *parents, leaf = name.split(".")
    for parent in parents:
        config = config[parent]
    with config.unlocked(), config.ignore_type():
        config[leaf] = value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("data.pach", 64, "'config.data.pach': did you mean 'config.data.patch'"),
        ("lr", 1e-3, "unknown config field 'config.lr'"),
        ("steps", 10.5, "config.steps is 10.5: expected a value of type int"),
        ("data", 3, "config.data is 3: expected fields below it"),
        ("steps", 0, "config.steps is 0: give at least 1"),
        ("seed", -1, "config.seed is -1: give at least 0"),
        ("loss", "l2", "unknown config.loss 'l2': did you mean 'l1'"),
        ("dtype", "float16", "known are bfloat16, float32"),
        ("data.grid_phase", "alined", "did you mean 'aligned'"),
        ("optimizer.decay", "cosin", "did you mean 'cosine'"),
        ("optimizer.learning_rate", 0.0, "learning_rate must be above 0"),
        ("adversary.updates", "alternate", "did you mean 'alternating'"),
        ("adversary.updates", "simultaneous", "is for config.model.name='dagn_feat"),
        ("evaluation.codec", "jpg", "did you mean 'jpeg'"),
        ("evaluation.qualities", (), "config.evaluation.qualities is empty"),
        ("evaluation.qualities", (10, 101), "quality 101 is outside jpeg's range"),
        ("evaluation.every", 7, "is no multiple of config.checkpoint.every"),
    ],
)
def test_a_wrong_field_is_named(config, name, value, words):
    set_field(config, name, value)
    with pytest.raises(UserError, match=words):
        experiment.check(config)


def test_an_adversary_that_cannot_move_is_refused():
    config = load(QUICKSTART.with_name("dagn_stage1_quickstart.py"))
    config.adversary.learning_rate = 0.0
    with pytest.raises(UserError, match=r"adversary\.learning_rate must be above 0"):
        experiment.check(config)


def test_a_missing_field_is_named(config):
    del config.optimizer.decay
    with pytest.raises(UserError, match=r"lacks the field config\.optimizer\.decay"):
        experiment.check(config)


def test_a_whole_number_does_for_a_float(config):
    set_field(config, "optimizer.weight_decay", 0)
    experiment.check(config)


def test_the_encode_command_is_quoted(config):
    folder = Path("a work/dir")
    command = experiment.encode_command(config, folder)
    assert command.startswith("cir encode ") and command.endswith(
        "'a work/dir/records'"
    )
