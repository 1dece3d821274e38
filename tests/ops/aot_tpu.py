"""Compiles `axial_sample` for a TPU v5e without one, and prints figures as JSON.

A program of its own, run by test_axial_sample.py: libtpu and its environment stay out
of the tests' process.
"""

import json
import os

os.environ["JAX_PLATFORMS"] = "cpu"  # topologies need libtpu, not a TPU as a backend
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # figures come from compiling
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # nor Google's metadata server

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from cir_jax.ops.axial_sample import axial_sample


def compiled_for_tpu(function, *shapes: tuple[int, ...]):
    topology = topologies.get_topology_desc("v5e:2x2", "tpu")
    sharding = SingleDeviceSharding(topology.devices[0])
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding) for shape in shapes
    ]
    return jax.jit(function).lower(*arguments).compile()


def figures(function, *shapes: tuple[int, ...]) -> dict[str, float | bool]:
    compiled = compiled_for_tpu(function, *shapes)
    text = compiled.as_text()
    return {
        "gather": "gather(" in text or "scatter(" in text,
        "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "accessed_gb": compiled.cost_analysis()["bytes accessed"] / 1e9,
    }


def main():
    results = {}
    training = (16, 64, 64, 128), (16, 64, 64, 64)
    inference = (1, 270, 480, 128), (1, 270, 480, 64)
    for axis in (1, 2):

        def sample(x, offset, axis=axis):
            return axial_sample(x, offset, axis)

        def value_and_gradients(x, offset, g, sample=sample):
            y, pull = jax.vjp(sample, x, offset)
            return y, *pull(g)

        for_training = figures(value_and_gradients, *training, training[0])
        results[f"training, axis {axis}"] = for_training
        results[f"inference, axis {axis}"] = figures(sample, *inference)
    results["by gather"] = figures(
        lambda x, offset: axial_sample(x, offset, 2, "gather"), *training
    )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
