"""What a training step costs, told before the first one."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cir_jax import hardware, parallel
from cir_jax.hardware import count
from cir_jax.objectives import Objective
from cir_jax.optimizers import Turn
from cir_jax.train_step import TrainState, jit_step


def describe(
    mesh: Mesh,
    state: TrainState,
    frozen: Mapping[str, Any],
    batch_size: int,
    accumulate: int,
    memory: Any,
    flops: float,
) -> list[str]:
    """The devices and what a step takes of them, in lines to print.

    Args:
        mesh: see `parallel.make_mesh`.
        state: of arrays on the mesh.
        frozen: the objective's arrays on the mesh.
        batch_size: images of a step, all devices together.
        accumulate: passes of a step.
        memory: what `memory_analysis` tells of the compiled step.
        flops: of a step, all devices together, see `lowered_step`.
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
    if frozen:
        held = ", ".join(
            f"{name} {count(parallel.bytes_per_device(part), 'B')}"
            for name, part in frozen.items()
        )
        lines.insert(2, f"frozen per device, without gradient or optimizer: {held}")
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
    temporary = count(analysis.temp_size_in_bytes, "B")
    return f"{count(memory_needed(analysis), 'B')}, {temporary} of them temporary,"


def memory_needed(analysis: Any) -> int:
    """Bytes that a compiled program takes of a device, by its `memory_analysis`."""
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def lowered_step(
    config: ConfigDict,
    graphdef: nnx.GraphDef,
    objective: Objective,
    turns: Sequence[Turn],
    mesh: Mesh,
    state: TrainState,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    frozen: Mapping[str, Any],
) -> tuple[jax.stages.Lowered, float]:
    """The training step's program for the mesh, and the FLOPs the model takes of it.

    These are of the whole batch, as XLA counts them before it compiles; of a step
    without accumulation and rematerialisation, since loops are counted once, and what
    is computed again is no work for the model; nor is what frozen networks compute. 0
    where JAX may not use the CPU.

    Args:
        config: the experiment.
        graphdef: of the model.
        objective: see objectives.py.
        turns: see `optimizers.turns`.
        mesh: see `parallel.make_mesh`.
        state: of arrays or their shapes.
        batch: the shapes of one.
        frozen: the objective's arrays or their shapes.
    """
    step = jit_step(config, graphdef, objective, turns, mesh, state)
    lowered = step.lower(state, batch, frozen)
    plain, alone = ConfigDict(config), objective.alone()
    plain.accumulate, plain.rematerialise = 1, "none"
    same = plain == config and alone == objective
    if same and mesh.devices.flat[0].platform == "cpu":
        return lowered, _flops(lowered)
    # Lowered for a GPU or TPU, JAX does not tell them.
    try:
        mesh = parallel.make_mesh(1, jax.local_devices(backend="cpu")[:1])
    except RuntimeError:  # there is no CPU in JAX_PLATFORMS
        return lowered, 0.0
    state, frozen = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, frozen)
    )
    on_cpu = jit_step(plain, graphdef, alone, turns, mesh, state)
    return lowered, _flops(on_cpu.lower(state, batch, frozen))


def _flops(lowered: jax.stages.Lowered) -> float:
    costs = lowered.cost_analysis()
    if isinstance(costs, Sequence):
        costs = costs[0]
    return costs["flops"]
