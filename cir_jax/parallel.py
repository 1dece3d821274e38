"""Devices: the mesh, and how batches and training state lie on it."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cir_jax.errors import UserError

AXES = ("data", "fsdp")


def make_mesh(fsdp: int) -> Mesh:
    """A mesh of all devices with axes `data` and `fsdp`.

    Args:
        fsdp: the size of the `fsdp` axis; the rest is `data`.

    Raises:
        UserError: `fsdp` does not divide the number of devices.
    """
    devices = jax.device_count()
    if fsdp < 1 or devices % fsdp:
        raise UserError(
            f"config.mesh.fsdp={fsdp} does not divide the {devices} devices: give a "
            "divisor"
        )
    # Automatic axes: the compiler places what is inside the step.
    return jax.make_mesh((devices // fsdp, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
    """Batches are split over all devices, both axes.

    Raises:
        UserError: the global batch does not divide among the devices.
    """
    if batch_size % mesh.size:
        raise UserError(
            f"config.batch_size={batch_size} does not divide among {mesh.size} "
            "devices: make it a multiple"
        )
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Everything on every device: where parameters and optimizer state lie."""
    return NamedSharding(mesh, PartitionSpec())


def to_devices(
    batch: Mapping[str, np.ndarray], sharding: NamedSharding
) -> dict[str, jax.Array]:
    """Makes a global batch of every process's slice of it."""
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def local(tree: Any) -> Any:
    """Arrays that are the same on all devices, as one device of this process has them.

    They are neither copied nor tied to the other devices any longer.
    """
    return jax.tree.map(lambda array: array.addressable_data(0), tree)


def gathered(content: Any) -> list[Any]:
    """What every process gives, as JSON can tell it, in every process's hands.

    All processes must call it.
    """
    if jax.process_count() == 1:
        return [content]
    data = np.frombuffer(json.dumps(content).encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.array([data.size])))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    parts = multihost_utils.process_allgather(padded)
    return [
        json.loads(part[:size].tobytes())
        for part, size in zip(parts, sizes, strict=True)
    ]
