"""What tests of reading pipelines share."""

import contextlib
import itertools

import numpy as np


def taken(batches, count):
    """The first batches of an endless iterator, which is closed after them."""
    with contextlib.closing(batches):
        return list(itertools.islice(batches, count))


def assert_same(left, right):
    """Two lists of batches hold the same arrays by the same names."""
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def joined(*shares):
    """The global batches of which each process has read its share."""
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
