import jax
import jax.numpy as jnp
import numpy as np
import pytest
from twins import arrays, assert_twins

from cir_jax.ops.window_attention import (
    merge,
    overlapping_partition,
    partition,
    relative_position_index,
    shift_regions,
    window_attention,
)


def test_windows_are_numbered_row_by_row():
    (x,) = arrays((2, 6, 9, 4))
    windows = partition(x, 3)
    assert windows.shape == (2, 6, 9, 4)
    np.testing.assert_array_equal(
        windows[:, 4], x[:, 3:6, 3:6].reshape(2, 9, 4)
    )  # second row of windows, second in it
    np.testing.assert_array_equal(merge(windows, 6, 9), x)


@pytest.mark.parametrize(("size", "overlap"), [(4, 1), (4, 2), (6, 2)])
def test_overlapping_windows_are_cut_from_the_padded_map(size, overlap):
    def cut(x):
        margin = (overlap, overlap)
        padded = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))
        side = size + 2 * overlap
        windows = [
            padded[:, top : top + side, left : left + side]
            for top in range(0, x.shape[1], size)
            for left in range(0, x.shape[2], size)
        ]
        return jnp.stack([w.reshape(len(x), side**2, -1) for w in windows], axis=1)

    assert_twins(
        lambda x: overlapping_partition(x, size, overlap),
        cut,
        *arrays((2, 2 * size, 3 * size, 3)),
    )


def test_swin_index_counts_offsets_from_the_top_left():
    size = 3
    index = relative_position_index(size)
    assert index.dtype == np.int64
    for q in range(size**2):
        for k in range(size**2):
            rows = q // size - k // size + size - 1
            columns = q % size - k % size + size - 1
            assert index[q, k] == rows * (2 * size - 1) + columns


def test_overlapping_index_is_the_released_one_negative_numbers_included():
    index = relative_position_index(16, 4)
    assert index.shape == (256, 576)
    assert index.dtype == np.int64
    assert index.min() < 0
    for q, k in np.random.RandomState(0).randint((256, 576), size=(200, 2)):
        (yq, xq), (yk, xk) = divmod(q, 16), divmod(k, 24)
        assert index[q, k] == (yk - yq - 7) * 39 + (xk - xq - 7)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (4, 8), (4, 4)])
def test_regions_join_what_was_together_before_the_shift(height, width):
    size, shift = 4, 2
    regions = shift_regions(height, width, size, shift)
    rows, columns = (np.roll(np.arange(length), -shift) for length in (height, width))
    # In the rolled map, two pixels of a window belong together where they are still as
    # far apart as they look.
    for window in range(len(regions)):
        top, left = (size * i for i in divmod(window, width // size))
        for p in range(size**2):
            for q in range(size**2):
                (yp, xp), (yq, xq) = divmod(p, size), divmod(q, size)
                together = (
                    rows[top + yp] - rows[top + yq] == yp - yq
                    and columns[left + xp] - columns[left + xq] == xp - xq
                )
                assert (regions[window, p] == regions[window, q]) == together


@pytest.mark.parametrize("shifted", [False, True])
def test_attention_equals_its_definition_window_by_window(shifted):
    heads, size = 2, 2
    regions = shift_regions(4, 4, size, 1) if shifted else None

    def one_by_one(q, k, v, bias):
        out = np.zeros(q.shape[:2]).tolist()
        for b, w in np.ndindex(q.shape[:2]):
            parts = []
            for n in range(heads):
                c = slice(3 * n, 3 * n + 3)
                logits = q[b, w, :, c] @ k[b, w, :, c].T / 3**0.5 + bias[n]
                if shifted:
                    apart = regions[w][:, None] != regions[w][None, :]
                    logits = logits - 100 * apart
                parts.append(jax.nn.softmax(logits, axis=1) @ v[b, w, :, c])
            out[b][w] = jnp.concatenate(parts, axis=1)
        return jnp.stack([jnp.stack(row) for row in out])

    shape = (2, 4, size**2, 3 * heads)
    assert_twins(
        lambda *a: window_attention(*a, regions),
        one_by_one,
        *arrays(shape, shape, shape, (heads, size**2, size**2)),
    )
