"""Conversions beside the PyTorch class that the checkpoint is of."""

from pathlib import Path

import numpy as np
import pytest

from cir_jax import cli

FILE = Path(__file__).with_name("official_restormer.py")
SIZES = {
    "dim": 8,
    "num_blocks": [1, 2, 1, 1],
    "num_refinement_blocks": 1,
    "heads": [1, 2, 2, 4],
    "ffn_expansion_factor": 2.66,
    "bias": True,
}
ARGUMENTS = ", ".join(f"{name}={value}" for name, value in SIZES.items())

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def network(torch):
    """An official network of random weights."""
    from official_restormer import Restormer

    torch.manual_seed(0)
    network = Restormer(**SIZES)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network.eval()


@pytest.fixture
def checkpoint(torch, network, tmp_path):
    """As torch saves it."""
    torch.save({"params": network.state_dict()}, tmp_path / "restormer.pth")
    return tmp_path / "restormer.pth"


def convert(*arguments):
    return cli.run(["convert", *map(str, arguments)])


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("Restormer", cli.DONE, "equal but for rounding"),
        ("Changed", cli.SOME_FAILED, "NOT equal"),
    ],
)
def test_ours_is_compared_with_the_official_network(
    checkpoint, capsys, name, status, words
):
    against = f"{FILE}:{name}({ARGUMENTS})"
    assert convert(checkpoint, "--check", "--against", against) == status
    _, _, written, check, compared = capsys.readouterr().out.splitlines()
    assert written == f"weights: {checkpoint.with_suffix('.safetensors')}"
    assert check.startswith("check: coffee")
    assert compared.startswith(f"against {against}: largest difference")
    assert compared.endswith(words)


def test_grey_networks_are_compared_too(torch, tmp_path, capsys):
    from official_restormer import Restormer

    sizes = SIZES | {"inp_channels": 1, "out_channels": 1}
    torch.save(Restormer(**sizes).state_dict(), tmp_path / "grey.pth")
    arguments = ", ".join(f"{name}={value}" for name, value in sizes.items())
    against = f"{FILE}:Restormer({arguments})"
    assert convert(tmp_path / "grey.pth", "--against", against) == cli.DONE
    assert capsys.readouterr().out.endswith("equal but for rounding\n")


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz"])
def test_the_official_network_takes_what_comes_back(
    torch, network, checkpoint, tmp_path, suffix
):
    assert convert(checkpoint) == cli.DONE
    ours, back = checkpoint.with_suffix(".safetensors"), tmp_path / f"back.{suffix}"
    assert convert(ours, "--to-torch", "-o", back) == cli.DONE
    if suffix == "pth":
        tensors = torch.load(back, weights_only=True)
    elif suffix == "safetensors":
        from safetensors.torch import load_file

        tensors = load_file(back)
    else:
        with np.load(back) as arrays:
            tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
    expected = {name: x.clone() for name, x in network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    network.load_state_dict(tensors, strict=True)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize(
    ("official", "words"),
    [
        ("FILE:Nothing", "the file has no Nothing"),
        ("FILE:Restormer(dim=size)", "with values such as 3, True or 'text'"),
        ("FILE:Restormer(dim=8", "give it as FILE.py:CLASS or"),
        ("FILE", "give it as FILE.py:CLASS or"),
        ("nowhere.py:Restormer", "there is no Python file 'nowhere.py'"),
        ("FILE:Raising", "failed: RuntimeError: no message"),
        ("FILE:Raising('one\\ntwo')", "failed: RuntimeError: one"),
        ("FILE:Leaving", "failed: SystemExit: usage: official_restormer.py"),
        ("FILE:Restormer(sizes=3)", "failed: TypeError: "),
        ("FILE:sys", "failed: TypeError: 'module' object is not callable"),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_is_written(
    checkpoint, torch, official, words
):
    official = official.replace("FILE", str(FILE), 1)
    with pytest.raises(cli.UserError) as error:
        convert(checkpoint, "--against", official)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not checkpoint.with_suffix(".safetensors").exists()


@pytest.mark.parametrize(
    ("official", "words"),
    [
        ("Restormer(dim=8)", "failed: RuntimeError: Error(s) in loading state_dict"),
        (f"Larger({ARGUMENTS})", "gives an image of (128, 129, 3), ours (128, 128, 3)"),
    ],
)
def test_a_class_that_the_weights_are_not_of_is_told(checkpoint, official, words):
    with pytest.raises(cli.UserError) as error:
        convert(checkpoint, "--against", f"{FILE}:{official}")
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
