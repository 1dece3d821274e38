import os

import jax
import numpy as np
import pytest
import tiny
from programs import UNOPTIMISED

from cir_jax import cli, image_io, photos, weights

# Compiling is most of what the tests do: keep what was compiled, also for the processes
# that tests start.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": os.path.abspath(".pytest_cache/jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0.1,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
}
for name, value in CACHE.items():
    os.environ[name] = str(value)
    jax.config.update(name.lower(), value)


def pytest_configure(config):
    """Most tests wait for programs to compile, few for them to run."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} {UNOPTIMISED}".strip()


def pytest_collection_modifyitems(items):
    """The longest files first, so that at the end no process waits for one of them."""
    longest = ("test_ucip_quickstart.py", "test_main.py", "test_cluster.py")
    longest += ("test_guidance.py", "test_perceiver.py", "test_train.py")
    items.sort(key=lambda item: item.path.name not in longest)


@pytest.fixture(scope="session")
def photographs() -> dict[str, np.ndarray]:
    """The validation photographs, by file name without suffix."""
    folder = photos.folder("validation")
    return {p.stem: image_io.read_rgb(p) for p in image_io.find_images(folder)}


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory):
    """A weights file of a small network."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights.save(path, tiny.light(), {"step": "7"})
    return path


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """A few small records of the photographs that ship."""
    out = tmp_path_factory.mktemp("data") / "records"
    arguments = ["encode", "--quality", "10", "--crop", "160", "--stride", "160"]
    assert cli.run([*arguments, "--out", str(out)]) == cli.DONE
    return out


@pytest.fixture(scope="session")
def validation(tmp_path_factory, photographs):
    """One small crop to evaluate on."""
    folder = tmp_path_factory.mktemp("images") / "crops"
    image_io.write_png(folder / "coffee.png", photographs["coffee"][100:132, 100:132])
    return folder
