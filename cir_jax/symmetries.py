"""The 8 symmetries of the square: flips and rotations of images."""

import numpy as np

TURNS = range(8)
"""0 leaves an image as it is, 1 to 3 rotate it, 4 to 7 mirror and rotate it."""


def turned(images: np.ndarray, turn: np.integer | int) -> np.ndarray:
    """Images [..., h, w, c] in one of the `TURNS`, contiguous in memory."""
    if turn >= 4:
        images = images[..., ::-1, :]
    return np.ascontiguousarray(np.rot90(images, turn % 4, axes=(-3, -2)))


def turned_back(images: np.ndarray, turn: np.integer | int) -> np.ndarray:
    """Undoes `turned`."""
    images = np.rot90(images, -(turn % 4), axes=(-3, -2))
    return images[..., ::-1, :] if turn >= 4 else images
