"""What a training step costs, told before the first one."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from cir_jax import hardware, parallel
from cir_jax.hardware import count
from cir_jax.train_step import TrainState


def describe(
    mesh: Mesh,
    state: TrainState,
    batch_size: int,
    accumulate: int,
    memory: Any,
    flops: float,
) -> list[str]:
    """The devices and what a step takes of them, in lines to print.

    Args:
        mesh: see `parallel.make_mesh`.
        state: of arrays on the mesh.
        batch_size: images of a step, all devices together.
        accumulate: passes of a step.
        memory: what `memory_analysis` tells of the compiled step.
        flops: of a step, all devices together, see `model_flops`.
    """
    device = mesh.devices.flat[0]
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    parts = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "average": state.ema,
    }
    sizes = ", ".join(
        f"{name} {count(parallel.bytes_per_device(part), 'B')}"
        for name, part in parts.items()
    )
    lines = [
        f"devices: {mesh.size} {device.device_kind} in {jax.process_count()} "
        f"process(es), mesh {axes}",
        f"state per device: {sizes}",
        f"step: {batch_size} images in {accumulate} pass(es), "
        f"{count(flops, 'FLOP')}, {_memory(memory)} per device",
    ]
    peak = hardware.peak(device)
    if peak:
        seconds = flops / (mesh.size * peak)
        lines.append(
            f"at the peak of {count(peak, 'FLOP/s')} per device a step would take "
            f"{seconds * 1000:.3g} ms"
        )
    return lines


def _memory(analysis: Any) -> str:
    if analysis is None:
        return "memory not told"
    needed = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )
    temporary = count(analysis.temp_size_in_bytes, "B")
    return f"{count(needed, 'B')}, {temporary} of them temporary,"


def model_flops(lowered: jax.stages.Lowered) -> float:
    """FLOPs of a lowered step, all devices together, as XLA counts them.

    Of a step without accumulation and rematerialisation: loops are counted once, and
    what is computed again is no work for the model.
    """
    costs = lowered.cost_analysis() or {}
    if isinstance(costs, Sequence):
        costs = costs[0]
    return costs.get("flops", 0.0)
