"""The restoration networks: one paper, one file, found by the file's name."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from ml_collections import ConfigDict

from cir_jax.errors import UserError, unknown

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
"""The types that networks compute in, by name."""

# What odd values raise where a network is put together.
_UNBUILDABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_PARTS = {"layers", "pooling", "prompted_unet", "ucip_blocks"}  # no whole network


def model_names() -> list[str]:
    """The names that `build_model` knows: the networks' files beside this one."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - _PARTS)


def build_model(
    config: Mapping[str, Any] | ConfigDict,
    rngs: nnx.Rngs,
    *,
    dtype: Dtype = jnp.float32,
) -> nnx.Module:
    """Builds the network that a config describes.

    Every network is called with images in [0, 1], `b h w 3`, and returns the restored
    ones, unclipped. It has `scale` (how much larger they are), `multiple` (of which
    height and width must be multiples) and `config` (every hyper-parameter, from which
    this function rebuilds it).

    Args:
        config: "name" of the network, optionally its "variant", and hyper-parameters
            that take the place of the variant's.
        rngs: where the initial parameters come from.
        dtype: type that the network computes in; its parameters are float32.

    Returns:
        The network.

    Raises:
        UserError: an unknown name, variant or hyper-parameter, and then the known ones
            are told; or a value of which the network cannot be built.
    """
    hyper_parameters = dict(config)
    name = str(hyper_parameters.pop("name", ""))
    if name not in model_names():
        raise unknown("model", name, model_names())
    module = importlib.import_module(f"{__name__}.{name}")

    variant = hyper_parameters.pop("variant", None)
    if variant is not None:
        if str(variant) not in module.VARIANTS:
            raise unknown(f"variant of {name}", str(variant), module.VARIANTS)
        hyper_parameters = module.VARIANTS[str(variant)] | hyper_parameters

    known = set(inspect.signature(module.Model.__init__).parameters)
    known -= {"self", "rngs", "dtype"}
    for key in hyper_parameters:
        if key not in known:
            raise unknown(f"hyper-parameter of {name}", key, known)
    try:
        return module.Model(**hyper_parameters, rngs=rngs, dtype=dtype)
    except _UNBUILDABLE as error:
        raise UserError(
            f"{name} cannot be built of {hyper_parameters}: {error}"
        ) from error


def abstract_model(
    config: Mapping[str, Any] | ConfigDict, *, dtype: Dtype = jnp.float32
) -> nnx.Module:
    """The network with shapes where its parameters would be, for weights to fill.

    Args:
        config: as in `build_model`.
        dtype: type that the network is to compute in.

    Returns:
        The network; each parameter holds a `jax.ShapeDtypeStruct`.
    """
    return abstract(lambda rngs: build_model(config, rngs, dtype=dtype))


def abstract(build: Callable[[nnx.Rngs], nnx.Module]) -> nnx.Module:
    """A network with shapes where its parameters would be, for weights to fill.

    Args:
        build: makes the network, given where its initial parameters come from.
    """
    return nnx.eval_shape(lambda: build(_OneKey()))


class _OneKey(nnx.Rngs):
    """Random streams that always give the same key: nothing is drawn in the end.

    A real stream counts its draws, and while tracing each count takes time in
    proportion to those before it, which adds up to 20 seconds for a full network.
    """

    def __init__(self) -> None:
        pass

    def params(self) -> jax.Array:
        return jax.random.key(0)
