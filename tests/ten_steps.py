"""Trains ten steps on all devices and prints the losses; run by test_main.py."""

import itertools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import tiny
from flax import nnx
from test_experiment import QUICKSTART, load

from cir_jax import parallel
from cir_jax.data import manifest, pairs
from cir_jax.losses import charbonnier
from cir_jax.optimizers import optimizer
from cir_jax.train import TrainState, make_step

records, _ = manifest.open_records(Path(sys.argv[1]), "")
mesh = parallel.make_mesh(fsdp=int(sys.argv[2]))
config = load(QUICKSTART)
config.optimizer.warmup_steps = 0  # the full learning rate from the first step
graphdef, params = nnx.split(tiny.model(), nnx.Param)
params = nnx.to_pure_dict(params)
transformation = optimizer(config.optimizer, config.steps)
state = TrainState(
    jnp.int32(0), params, transformation.init(params), jax.tree.map(jnp.copy, params)
)
split = parallel.batch_sharding(mesh, 8)
step = jax.jit(
    make_step(graphdef, charbonnier, transformation, config.ema_decay),
    in_shardings=(parallel.replicated(mesh), split),
    donate_argnums=0,
)
batches = pairs.batches(
    records, seed=0, start=0, batch_size=8, patch=32, grid_phase="random"
)
losses = []
for batch in itertools.islice(batches, 10):
    state, metrics = step(state, parallel.to_devices(batch, split))
    losses.append(float(metrics["loss"]))
print(json.dumps({"devices": mesh.size, "losses": losses}))
