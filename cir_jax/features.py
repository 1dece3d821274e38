"""What machine vision starts from, and how much of it an image has kept.

Corners and edges of the clean image's luma that are found again in another image: two
numbers that need no pretrained network. NumPy alone, in float64.
"""

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from cir_jax.metrics import luma

CLEAR = 1.0
"""Levels a pixel: a weaker slope of the luma is neither a corner nor an edge."""
FINE = 1.0
"""Sigma of the Gaussian before slopes are taken, pixels."""

HARRIS_K = 0.04
HARRIS_SIGMA = 2.0
"""Of the Gaussian that a corner's surroundings are weighted by, pixels."""
PIXELS_PER_CORNER = 256
CORNER_REACH = 1.5
"""Pixels that a corner may move."""

EDGE_SHARE = 0.1
"""Of the clean image's pixels: those of the steepest slopes may be edges."""
EDGE_REACH = 1.0
"""Pixels that an edge may move."""

Image = UInt8[np.ndarray, "h w 3"]
Plane = Float64[np.ndarray, "h w"]
Marks = Bool[np.ndarray, "h w"]


def corner_repeatability(clean: Image, image: Image) -> float:
    """The share of the clean image's corners that are corners of the image too.

    Schmid, Mohr and Bauckhage, Evaluation of interest point detectors (IJCV 2000),
    section 3, the repeatability rate at epsilon = 1.5 pixels, for images of one
    viewpoint. Corners are the `PIXELS_PER_CORNER`th part of the pixels with the
    strongest response, fewer where there are fewer.

    Returns:
        0 to 1; 1 for equal images, and where the clean one has no corner. Images that
        have nothing in common get about 0.03.
    """
    due, found = corners(clean), corners(image)
    return _share(due, _widened(found, CORNER_REACH))


def edge_agreement(clean: Image, image: Image) -> float:
    """The F-measure of the image's edge pixels, the clean one's being right.

    Martin, Fowlkes and Malik, Learning to detect natural image boundaries (PAMI 2004),
    section 4, with their precision and recall alike in weight, and no assignment: an
    edge pixel is matched if there is one of the other image within a pixel. What counts
    as steep is learnt from the clean image, so that smoothing loses edges as well.

    Returns:
        0 to 1; 1 for equal images, and where neither has an edge.
    """
    slopes = [_slopes(_smooth(_plane(each), FINE)) for each in (clean, image)]
    steep = max(CLEAR, float(np.quantile(np.hypot(*slopes[0]), 1 - EDGE_SHARE)))
    due, found = (_thin_edges(*each, steep) for each in slopes)
    recall = _share(due, _widened(found, EDGE_REACH))
    precision = _share(found, _widened(due, EDGE_REACH))
    return 2 * precision * recall / max(precision + recall, np.finfo(float).tiny)


def corners(image: Image) -> Marks:
    """Where the strongest corners are: local maxima of the Harris response."""
    response = harris(_plane(image))
    peaks = response > CLEAR**4
    for y, x in _steps(1.5):
        peaks &= response >= _moved(response, y, x, -np.inf)
    count = min(image.shape[0] * image.shape[1] // PIXELS_PER_CORNER, peaks.sum())
    ranked = np.argsort(np.where(peaks, -response, np.inf), axis=None, kind="stable")
    chosen = np.zeros(response.size, bool)
    chosen[ranked[:count]] = True
    return chosen.reshape(response.shape)


def harris(plane: Plane) -> Plane:
    """The response to corners, levels a pixel to the fourth power.

    Harris and Stephens, A combined corner and edge detector (1988): det - k trace^2 of
    the slopes' weighted second moments.
    """
    down, right = _slopes(_smooth(plane, FINE))
    a, b, c = (
        _smooth(each, HARRIS_SIGMA)
        for each in (down * down, right * right, down * right)
    )
    return a * b - c * c - HARRIS_K * (a + b) ** 2


def _thin_edges(down: Plane, right: Plane, steep: float) -> Marks:
    """Where a steep slope is no smaller than those before and behind it.

    Canny, A computational approach to edge detection (PAMI 1986), with directions in
    steps of 45 degrees, and one threshold.
    """
    slope = np.hypot(down, right)
    octant = np.round(np.arctan2(down, right) / (np.pi / 4)).astype(int) % 4
    thin = np.zeros(slope.shape, bool)
    for number, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        before, behind = _moved(slope, y, x, 0.0), _moved(slope, -y, -x, 0.0)
        thin |= (octant == number) & (slope >= np.maximum(before, behind))
    return thin & (slope >= steep)


def _plane(image: Image) -> Plane:
    return luma(image)[..., 0].astype(np.float64)


def _slopes(plane: Plane) -> tuple[Plane, Plane]:
    """Central differences downwards and to the right, levels a pixel."""
    down, right = np.gradient(plane)
    return down, right


def _smooth(plane: Plane, sigma: float) -> Plane:
    """Weighted means by a Gaussian that is cut off at 4 sigma; borders are mirrored."""
    reach = round(4 * sigma)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    for _ in range(2):  # along the rows, then along the columns
        padded = np.pad(plane, [(reach, reach), (0, 0)], mode="symmetric")
        height = len(plane)
        parts = (w * padded[top : top + height] for top, w in enumerate(weights))
        plane = sum(parts, np.zeros_like(plane)).T
    return plane


def _share(marks: Marks, area: Marks) -> float:
    """The share of marks that lie in an area; 1 if there are none."""
    return float(area[marks].mean()) if marks.any() else 1.0


def _widened(marks: Marks, reach: float) -> Marks:
    """All that is as near to a mark, pixels."""
    return np.any([_moved(marks, y, x, False) for y, x in _steps(reach)], axis=0)


def _steps(reach: float) -> list[tuple[int, int]]:
    """The steps to all pixels that are as near, its own among them."""
    whole = range(-int(reach), int(reach) + 1)
    return [(y, x) for y in whole for x in whole if y * y + x * x <= reach**2]


def _moved(array: np.ndarray, y: int, x: int, outside: float | bool) -> np.ndarray:
    """What is so many rows below and columns to the right of every pixel [h, w]."""
    height, width = array.shape
    padded = np.pad(array, max(abs(y), abs(x)), constant_values=outside)
    top, left = (max(abs(y), abs(x)) + step for step in (y, x))
    return padded[top : top + height, left : left + width]
