"""Compiles a stack of blocks for a TPU v5e without one, and prints temporary bytes.

A program of its own, run by test_train_step.py: libtpu and its environment stay out of
the tests' process.
"""

import json
import os

os.environ["JAX_PLATFORMS"] = "cpu"  # topologies need libtpu, not a TPU as a backend
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # nor Google's metadata server

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from cir_jax.models.layers import Block
from cir_jax.rematerialise import POLICIES, rematerialise

WIDTH, DEPTH, ROWS = 256, 4, 262144  # maps of 268 MB, more than the chip's cache


class Residual(Block):
    """Keeps its input, a product, and two more maps, if it is let."""

    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x + sin(cos(product))."""
        return x + jnp.sin(jnp.cos(self.linear(x)))


def temporary_bytes(policy: str) -> int:
    model = nnx.Sequential(*(Residual(nnx.Rngs(i)) for i in range(DEPTH)))
    graphdef, params = nnx.split(model, nnx.Param)

    def loss(params, x):
        copy = nnx.merge(graphdef, params)
        rematerialise(copy, policy)
        return copy(x).sum()

    topology = topologies.get_topology_desc("v5e:2x2", "tpu")
    sharding = SingleDeviceSharding(topology.devices[0])
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), (params, x)
    )
    program = jax.jit(jax.grad(loss)).lower(*shapes).compile()
    return program.memory_analysis().temp_size_in_bytes


print(json.dumps({policy: temporary_bytes(policy) for policy in POLICIES}))
