"""The README's commands, as they stand there, on small images."""

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import tiny
from golden_weights import made_up_weights

from cir_jax import image_io, torch_file
from cir_jax.convert import official_shapes
from cir_jax.models import abstract_model

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.mark.slow
def test_every_cir_command_runs(tmp_path, photographs, weights_file):
    for name, image in photographs.items():
        crop = image[:256, :256]
        for folder in ("photos", "CBSD68", "SOTS/outdoor/gt"):
            image_io.write_png(tmp_path / folder / f"{name}.png", crop)
        hazy = tmp_path / "SOTS/outdoor/hazy" / f"{name}_0.8_0.2.png"
        image_io.write_png(hazy, crop // 2 + 100)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    shutil.copy(weights_file, tmp_path / "runs/quickstart/weights.safetensors")
    official = made_up_weights(official_shapes(abstract_model(tiny.MODEL)))
    torch_file.write(tmp_path / "promptcir.pth", official)
    scripts = sysconfig.get_path("scripts")
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    commands = [command for command in COMMANDS if command.startswith("cir ")]
    assert len(commands) >= 9
    for command in commands:
        result = subprocess.run(
            shlex.split(command),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, f"{command}: {result.stderr}"
    assert len(list((tmp_path / "restored").glob("*.png"))) == len(photographs)
    for folder in ("mine", "ucsr"):
        assert (tmp_path / "data" / folder / "manifest.json").is_file()
    assert (tmp_path / "scores.json").is_file()
    returned = torch_file.read(tmp_path / "official.pth")
    for name, tensor in official.items():
        np.testing.assert_array_equal(returned[name], tensor, strict=True)


def test_every_config_that_is_named_is_there():
    configs = Path(__file__).parents[1] / "configs"
    named = set(re.findall(r"`?(?:configs/)?(\w+\.py)", README)) - {"experiment.py"}
    assert {path.name for path in configs.glob("*.py")} <= named


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", README)
    assert links
    for link in links:
        assert (Path(__file__).parents[1] / link).exists(), link
