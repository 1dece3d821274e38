"""Compiles programs for all devices, which must be eight; run by test_plan.py.

Prints what `collectives.read` finds in each: sizes by kind, and whether it is exact.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from cir_jax import collectives, parallel

ALL = ("data", "fsdp")  # of 4 x 2 devices, each with 64x256 numbers of float32
mesh = parallel.make_mesh(fsdp=2)
over_fsdp = functools.partial(lax.psum, axis_name="fsdp")


def swapped(x):
    return lax.ppermute(x, "fsdp", [(0, 1), (1, 0)])


PROGRAMS = {
    "sum": (lambda x: lax.psum(x, ALL), ()),
    "two sums": (lambda x: over_fsdp((x, x.astype(jnp.int16))), "data"),
    "gather": (lambda x: lax.all_gather(x, "fsdp", tiled=True), "data"),
    "scatter": (lambda x: lax.psum_scatter(x, "fsdp", tiled=True), ALL),
    "exchange": (lambda x: lax.all_to_all(x, "fsdp", 1, 0, tiled=True), ALL),
    "pass on": (swapped, ALL),
    "known loop": (
        lambda x: lax.fori_loop(0, 5, lambda _, y: over_fsdp(jnp.sin(y)), x),
        "data",
    ),
    "unknown loop": (
        lambda x: lax.while_loop(lambda y: y.sum() < 9, over_fsdp, x),
        "data",
    ),
    "branches": (lambda x: lax.cond(x[0, 0] > 0, over_fsdp, swapped, x), ALL),
    "nothing": (jnp.sin, ALL),
}

found = {}
for name, (program, out) in PROGRAMS.items():
    mapped = jax.shard_map(
        program,
        mesh=mesh,
        in_specs=PartitionSpec(ALL),
        out_specs=PartitionSpec(out),
        check_vma=False,
    )
    x = jax.ShapeDtypeStruct((512, 256), jnp.float32)
    text = jax.jit(mapped).lower(x).compile().as_text()
    found[name] = dataclasses.astuple(collectives.read(text))
print(json.dumps(found))
