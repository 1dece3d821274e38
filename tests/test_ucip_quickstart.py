"""UCIP's two small experiments as a user runs them, with fewer steps."""

import json

import numpy as np
import pytest
from test_main import run
from test_train import params

from cir_jax import cli


def trained(config, workdir, steps, *flags):
    """Runs a config in fewer steps; the gain over bicubic, dB."""
    every = [f"--config.{name}.every={steps}" for name in ("evaluation", "checkpoint")]
    result = run(
        f"--config=configs/{config}.py",
        f"--workdir={workdir}",
        f"--config.steps={steps}",
        "--config.batch_size=2",
        *every,
        *flags,
        XLA_FLAGS="",  # here what takes long is to train, not to compile
    )
    assert result.returncode == 0, result.stderr
    return result.stderr, gain(workdir / "scores.json")


def gain(scores):
    _, ours = json.loads(scores.read_text())["rows"]
    return ours["gain"]


@pytest.mark.slow
def test_it_beats_bicubic_and_its_prompts_learn_another_codec(tmp_path):
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    _, over_bicubic = trained("ucip_quickstart", base, 120)
    # In all its steps 0.15 and more, see RESULTS.md; so early 0.0296 was met.
    assert over_bicubic >= 0.015

    scores = tmp_path / "webp.json"
    webp = ["--codec", "webp", "--quality", "20", "--json", str(scores)]
    assert cli.run(["evaluate", "--weights", str(base), *webp]) == cli.DONE
    start = f"--config.init_from={base}"
    log, after = trained("ucip_prompt_tuning", tuned, 60, start)
    assert after >= gain(scores) + 0.05

    ours, theirs = params(tuned), params(base)
    prompts = {name for name in theirs if name.startswith("prompts.")}
    for name, value in theirs.items():
        same = np.array_equal(value, ours[name])
        assert same == (name not in prompts), name
    count = sum(theirs[name].size for name in prompts)
    assert f"{count:,} of them trained" in " ".join(log.split())
