"""A network's forward pass as a program for a device that need not be here."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import SingleDeviceSharding

from cir_jax.errors import UserError
from cir_jax.models.layers import RestorationModel


def lowered(
    model: RestorationModel, images: int, height: int, width: int, device: Any
) -> jax.stages.Lowered:
    """The program that restores images on one device.

    Args:
        model: of shapes, see `models.abstract_model`.
        images: how many at once.
        height: of each, in pixels; one that the network takes, see `check_size`.
        width: of each, in pixels.
        device: of JAX or of a topology.
    """
    shapes = {"image": ((images, height, width, model.channels), jnp.float32)}
    if model.known_codecs:
        shapes["codec"] = (images,), jnp.int32
    if model.semantic_dim:
        shapes["semantics"] = (4, images, model.semantic_dim), jnp.float32

    sharding = SingleDeviceSharding(device)
    graphdef, parameters = nnx.split(model)

    def on_device(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def forward(parameters: nnx.State, told: dict[str, jax.Array]) -> jax.Array:
        return nnx.merge(graphdef, parameters)(**told)

    return jax.jit(forward).lower(
        jax.tree.map(on_device, parameters),
        {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for name, (shape, dtype) in shapes.items()
        },
    )


def size(text: str) -> tuple[int, int]:
    """Height and width of "HxW".

    Raises:
        UserError: it is no such text.
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise UserError(f"--forward {text}: give height and width, such as 128x128")
    return int(found[1]), int(found[2])


def check_size(name: str, model: RestorationModel, height: int, width: int) -> None:
    """Refuses images that a network does not take.

    Raises:
        UserError: it wants other multiples.
    """
    if height % model.multiple or width % model.multiple:
        raise UserError(
            f"--forward {height}x{width}: {name} wants multiples of {model.multiple}"
        )


def network(text: str) -> dict[str, str]:
    """The config of NAME or NAME:VARIANT."""
    name, _, variant = text.partition(":")
    return {"name": name} | ({"variant": variant} if variant else {})
