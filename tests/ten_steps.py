"""Trains ten steps on all devices; run by test_main.py.

ten_steps.py RECORDS FSDP prints the losses and what the state takes of a device.
"""

import itertools
import json
import sys
from pathlib import Path

import tiny
from flax import nnx
from test_experiment import QUICKSTART, load

from cir_jax import objectives, parallel
from cir_jax.data import manifest, pairs
from cir_jax.optimizers import turns
from cir_jax.train_step import initial_state, jit_step

records, _ = manifest.open_records(Path(sys.argv[1]), "")
mesh = parallel.make_mesh(fsdp=int(sys.argv[2]))
config = load(QUICKSTART)
config.batch_size = 8
config.optimizer.warmup_steps = 0  # the full learning rate from the first step
graphdef, params = nnx.split(tiny.light(), nnx.Param)
moves = turns(config)
state = initial_state(nnx.to_pure_dict(params), moves, mesh, {})
split = parallel.batch_sharding(mesh, 8)
objective = objectives.from_config(config)
step = jit_step(config, graphdef, objective, moves, mesh, state)
batches = pairs.batches(
    records, seed=0, start=0, batch_size=8, patch=32, grid_phase="random"
)
losses = []
for batch in parallel.on_devices(itertools.islice(batches, 10), split):
    state, metrics = step(state, batch, {})
    losses.append(float(metrics["loss"]))
trained = {"params": state.params, "optimizer": state.opt_state, "average": state.ema}
print(
    json.dumps(
        {
            "devices": mesh.size,
            "losses": losses,
            "bytes": {
                name: parallel.bytes_per_device(tree) for name, tree in trained.items()
            },
        }
    )
)
