"""What the devices could do at best, to compare with."""

from collections.abc import Mapping

import jax

PEAK: Mapping[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA V100": 125e12,
}
"""FLOP/s of a device in half precision without sparsity, as its maker's data sheet has
it, by the start of JAX's `device_kind`; the first that fits."""
BANDWIDTH: Mapping[str, float] = {
    "TPU v5 lite": 819e9,
    "NVIDIA A100": 2.039e12,
    "NVIDIA H100": 3.35e12,
    "NVIDIA H200": 4.8e12,
    "NVIDIA L4": 300e9,
    "NVIDIA V100": 900e9,
}
"""Bytes/s between a device and its memory, as its maker's data sheet has it, by the
same names. Of an A100 and an H100 it is the fastest form's: 80 GB (40 GB: 1.555e12) and
SXM."""
LINKS: Mapping[str, float] = {"TPU v5 lite": 1600e9 / 8}
"""Bytes/s that a device can send to others, all its links together, as its maker's data
sheet has it: 1600 Gbit/s on https://cloud.google.com/tpu/docs/v5e."""
CLOCK: Mapping[str, float] = {"TPU v5 lite": 197e12 / (4 * 2 * 128 * 128)}
"""Cycles/s at which the 4 matrix units of 128 x 128 that it has make the peak."""


def peak(device: jax.Device) -> float | None:
    """FLOP/s at most; None where it is not known, as of CPUs."""
    return _of(device, PEAK)


def bandwidth(device: jax.Device) -> float | None:
    """Bytes/s of its memory at most; None where it is not known, as of CPUs."""
    return _of(device, BANDWIDTH)


def _of(device: jax.Device, table: Mapping[str, float]) -> float | None:
    kinds = [kind for kind in table if device.device_kind.startswith(kind)]
    return table[kinds[0]] if kinds else None


def count(number: float | int, unit: str = "") -> str:
    """A large number in three digits: 1.23 G and its unit."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".strip()
