"""What PyTorch itself writes is read, and reads what is written."""

import os

import numpy as np
import pytest
from test_torch_file import DTYPES, TAR, TREE

from cir_jax import torch_file
from cir_jax.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


class Hostile:
    def __init__(self, canary):
        self.command = f"touch {canary}"

    def __reduce__(self):
        return os.system, (self.command,)


def save(torch, path, value, **options):
    torch.save(value, path, **options)
    return path


def check(ours, theirs, torch):
    """The two trees are the same."""
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach()
        assert ours.shape == tuple(theirs.shape)
        assert f"torch.{ours.dtype}" == str(theirs.dtype)
        flat = theirs.contiguous().reshape(-1).view(torch.uint8)
        assert ours.tobytes() == flat.numpy().tobytes()
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            check(ours[key], theirs[key], torch)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            check(one, other, torch)
    else:
        assert ours == theirs


def checkpoint(torch):
    """What a training saves: a Lightning checkpoint with everything in it."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    network.register_buffer("index", torch.arange(5))
    network[0].tied = network[0].weight
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(2, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 9])
    whole = torch.arange(24).reshape(4, 6)
    return {
        "state_dict": network.state_dict(),
        "parameters": list(network.parameters()),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
        "half": network.half().state_dict(),
        "bfloat16": network.bfloat16().state_dict(),
        "views": [whole, whole.T, whole[1:, ::2], whole[4:], whole[2, 3]],
        "dtypes": [torch.ones(3, 0).to(getattr(torch, name)) for name in DTYPES],
        "numbers": [torch.arange(3).to(getattr(torch, name)) for name in DTYPES],
        "unsigned": torch.arange(3).to(torch.uint16),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": torch.tensor(1.0)}},
        "hyper_parameters": {"shape": [1, 2], "betas": (0.9, 0.99), "name": None},
        "shape": whole.shape,
        "epoch": 3,
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_torch_saves_is_read(tmp_path, torch, protocol):
    value = checkpoint(torch)
    path = save(torch, tmp_path / "käse.pth", value, pickle_protocol=protocol)
    ours = torch_file.read(path)
    check(ours, value, torch)
    assert np.shares_memory(*ours["views"][:2])
    tied = ours["state_dict"]
    assert np.shares_memory(tied["0.weight"], tied["0.tied"])


def test_what_torch_saves_in_its_older_format_is_read(tmp_path, torch):
    value = checkpoint(torch)
    del value["unsigned"]  # that format has none
    options = {"_use_new_zipfile_serialization": False}
    ours = torch_file.read(save(torch, tmp_path / "a.pth", value, **options))
    check(ours, value, torch)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_torch_file_is_refused(tmp_path, torch, zipped):
    canary, path = tmp_path / "canary", tmp_path / "a.pth"
    for value, name in [
        (Hostile(canary), "posix.system"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (np.float64(1), "numpy._core.multiarray.scalar"),
    ]:
        torch.save({"x": value}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=name.replace(".", "[. ]")) as caught:
            torch_file.read(path)
        assert "\n" not in str(caught.value)
    assert not canary.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_expanded_tensors_of_torch_are_refused(tmp_path, torch, zipped):
    value = torch.ones(1).expand(1 << 40)
    options = {"_use_new_zipfile_serialization": zipped}
    path = save(torch, tmp_path / "a.pth", [value], **options)
    with pytest.raises(UserError, match="more elements than are stored"):
        torch_file.read(path)


def test_older_files_that_are_damaged_are_refused(tmp_path, torch):
    path = save(torch, tmp_path / "a.pth", [1], _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for size in range(14, len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(
            UserError, match=r"a\.pth is not read with torch \('"
        ) as caught:
            torch_file.read(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(TAR)
    with pytest.raises(UserError, match="not read with torch"):
        torch_file.read(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_torchscript_program_is_refused(tmp_path, torch):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "a.pth")
    with pytest.raises(UserError, match="is a TorchScript program"):
        torch_file.read(tmp_path / "a.pth")


def test_files_without_torch_s_checksums_are_read(tmp_path, torch):
    torch.serialization.set_crc32_options(False)
    try:
        path = save(torch, tmp_path / "a.pth", [torch.arange(3)])
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(torch_file.read(path)[0], np.arange(3))


def test_torch_reads_what_is_written(tmp_path, torch):
    path = tmp_path / "a.pth"
    numbers = np.arange(6).reshape(2, 3)
    arrays = {name: numbers.astype(name) for name in DTYPES}
    arrays |= {"turned": numbers.T, "scalar": numbers[1, 1], "empty": numbers[2:]}
    arrays["scalar"] = np.asarray(arrays["scalar"])
    torch_file.write(path, {"arrays": arrays, **TREE})
    back = torch.load(path, weights_only=True)
    check(arrays, back.pop("arrays"), torch)
    assert back == TREE


def test_torch_s_modules_take_what_is_written(tmp_path, torch):
    source, target = (
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        for _ in range(2)
    )
    arrays = {name: x.numpy() for name, x in source.state_dict().items()}
    torch_file.write(tmp_path / "a.pth", arrays)
    target.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True))
    check(arrays, target.state_dict(), torch)
    torch.load(tmp_path / "a.pth", weights_only=True, mmap=True)
