import numpy as np
import pytest

from cir_jax import image_io, photos


@pytest.fixture(scope="session")
def photographs() -> dict[str, np.ndarray]:
    """The validation photographs, by file name without suffix."""
    folder = photos.folder("validation")
    return {p.stem: image_io.read_rgb(p) for p in image_io.find_images(folder)}
