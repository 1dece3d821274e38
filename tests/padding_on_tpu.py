"""Compiles small functions for a TPU that is not here; run by test_hlo_costs.py.

Prints what they move and compute as JSON.
"""

import json

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding

from cir_jax import hlo_costs, plan

SHARDING = SingleDeviceSharding(plan.topology("v5e:2x2", 1)[0])
CHANNELS, COLUMNS = (Format(Layout(o), SHARDING) for o in ((0, 1, 2, 3), (0, 1, 3, 2)))
"""Images with channels, or columns, along the lanes."""


def figures(function, *arguments, **layouts):
    shapes = [jax.ShapeDtypeStruct(*a, sharding=SHARDING) for a in arguments]
    program = jax.jit(function, **layouts).lower(*shapes).compile()
    operations = hlo_costs.operations(program.as_text())
    total = hlo_costs.total(operations)
    return {
        "ratio": total.moved / total.size,
        "moved": total.moved,
        "accessed": program.cost_analysis()["bytes accessed"],
        "flops": total.flops,
        "kinds": [operation.kind for operation in operations],
    }


def image(before, after):
    shape = (1, 128, 128, 48), jnp.float32
    layouts = {"in_shardings": before, "out_shardings": after}
    found = figures(lambda x: 2 * x, shape, **layouts)
    del found["flops"]
    return found


if __name__ == "__main__":
    table, rows = ((4096, 48), jnp.float32), ((512,), jnp.int32)
    left, right = ((1024, 48), jnp.bfloat16), ((48, 96), jnp.bfloat16)
    found = {
        "channels in the lanes": image(CHANNELS, CHANNELS),
        "columns in the lanes": image(COLUMNS, COLUMNS),
        "from one to the other": image(CHANNELS, COLUMNS),
        "rows by number": figures(lambda x, i: x[i], table, rows),
        "product": figures(lambda x, w: x @ w, left, right),
    }
    print(json.dumps(found))
