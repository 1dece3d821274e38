"""Blind restoration of compressed images in JAX.

`load(name_or_path)` gives a model, `Restorer(name_or_path)` a function from image
arrays to restored ones. Both are imported on first use, so that data workers, which
import this package too, start without JAX.
"""

import importlib

_EXPORTS = {"load": "cir_jax.weights", "Restorer": "cir_jax.restore"}
__all__ = ["Restorer", "load"]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'cir_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
