"""Devices: the cluster, the mesh, and how batches and training state lie on it."""

import collections
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from cir_jax.errors import UserError, first_line

AXES = ("data", "fsdp")
HEARTBEAT_SECONDS = 30
"""After which a process that does not answer is taken for dead, and the others end."""
AHEAD = 2
"""Batches that are on the devices before they are needed."""


def join_cluster(
    wanted: str, coordinator: str | None, processes: int | None, process: int | None
) -> None:
    """Makes this process one of a cluster's; must come before anything else of JAX.

    Args:
        wanted: "on"; "off"; or "auto", which is "on" where the settings are given or
            the environment tells of several processes: Slurm, Open MPI, or a TPU slice
            of several hosts. JAX finds the settings out that are not given.
        coordinator: HOST:PORT of process 0.
        processes: how many there are.
        process: this one's number.

    Raises:
        UserError: the settings are incomplete, or the others cannot be reached.
    """
    given = [each is not None for each in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise UserError(
            "--coordinator, --processes and --process go together: give all three or "
            "none"
        )
    found = all(given) or _several_processes(os.environ)
    if wanted == "off" or (wanted == "auto" and not found):
        return
    try:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the cluster's processes did not find each other ({first_line(error)}): "
            "give --coordinator=HOST:PORT --processes=N --process=I, or "
            "--distributed=off"
        ) from error


def _several_processes(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX knows has started several processes."""
    counts = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    several = any(int(environment.get(name, 1)) > 1 for name in counts)
    # An interactive Slurm shell has its tasks' count, but is none of them.
    task = "SLURM_PROCID" in environment or "SLURM_NTASKS" not in environment
    return (several and task) or len(hosts) > 1


def make_mesh(fsdp: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices with axes `data` and `fsdp`.

    Where the devices are several TPU slices, `fsdp` stays within one: only gradients
    go over the slow network between them.

    Args:
        fsdp: how many devices share one copy of the training state; -1 for as many as
            possible, all of a slice. The rest is `data`.
        devices: JAX's by default.

    Raises:
        UserError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    together = len(devices) // slices
    size = together if fsdp == -1 else fsdp
    if size < 1 or together % size:
        of_a_slice = " of a slice" if slices > 1 else ""
        raise UserError(
            f"config.mesh.fsdp={fsdp} does not divide the {together} "
            f"devices{of_a_slice}: give a divisor, or -1 for all"
        )
    shape = (together // size, size)
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(shape, (slices, 1), devices)
    # Automatic axes: the compiler places what is inside the step.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


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
    """Everything on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """Where each array of the training state lies.

    Cut along its largest axis that the devices of `fsdp` divide, the first of equals;
    whole on each of them where there is none.

    Args:
        mesh: see `make_mesh`.
        tree: of arrays or their shapes.
    """
    size = mesh.shape["fsdp"]

    def sharding(leaf: Any) -> NamedSharding:
        axes = [axis for axis, length in enumerate(leaf.shape) if length % size == 0]
        spec: list[str | None] = [None] * len(leaf.shape)
        if size > 1 and axes:
            spec[max(axes, key=lambda axis: leaf.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, tree)


def bytes_per_device(tree: Any) -> int:
    """What a sharded tree of arrays takes on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def on_devices(
    batches: Iterator[Mapping[str, np.ndarray]], sharding: NamedSharding
) -> Iterator[dict[str, jax.Array]]:
    """Global batches, made of every process's slices and sent some steps ahead."""
    ready: collections.deque[dict[str, jax.Array]] = collections.deque()
    for batch in batches:
        ready.append(
            {
                name: jax.make_array_from_process_local_data(sharding, array)
                for name, array in batch.items()
            }
        )
        if len(ready) > AHEAD:
            yield ready.popleft()
    yield from ready


def on_all(tree: Any, mesh: Mesh) -> Any:
    """The same arrays on every device; every process gives the same."""
    return _put_on_all(mesh)(tree)


def whole(tree: Any, mesh: Mesh) -> Any:
    """Arrays of the training state in one piece, as one device of a process has them.

    All processes must call it. What no axis of `fsdp` cuts is not copied.
    """
    if mesh.shape["fsdp"] > 1:
        tree = on_all(tree, mesh)
    return jax.tree.map(lambda array: array.addressable_data(0), tree)


@functools.cache
def _put_on_all(mesh: Mesh) -> Callable[[Any], Any]:
    # One function for a mesh, which is compiled once, not at every evaluation.
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def is_first() -> bool:
    """Whether this process is the one that writes files and talks."""
    return jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Waits until every process has come to the same place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


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
