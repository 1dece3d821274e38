"""Lowers every config's training step on all devices; run by test_main.py."""

import functools
import json

import jax
import jax.numpy as jnp
from flax import nnx
from test_experiment import CONFIGS, load

from cir_jax import parallel
from cir_jax.models import DTYPES, abstract_model
from cir_jax.optimizers import optimizer
from cir_jax.train_step import initial_state, jit_step

STAGES = {
    "promptcir": (("online",),),  # of the larger patches
    "ucip": (("oracle",),),  # which its batches' codec numbers are a part of
}

lowered = {}
for path in CONFIGS:
    for arguments in STAGES.get(path.stem, ((),)):
        config = load(path, *arguments)
        config.batch_size = max(config.batch_size, jax.device_count())
        mesh = parallel.make_mesh(config.mesh.fsdp)
        model = abstract_model(config.model, dtype=DTYPES[config.dtype])
        graphdef, params = nnx.split(model, nnx.Param)
        transformation = optimizer(config.optimizer, config.steps, config.trainable)
        start = functools.partial(
            initial_state, transformation=transformation, mesh=mesh
        )
        state = jax.eval_shape(start, nnx.to_pure_dict(params))
        batch = {
            name: jax.ShapeDtypeStruct((config.batch_size, side, side, 3), jnp.uint8)
            for name, side in (
                ("degraded", config.data.patch),
                ("clean", model.scale * config.data.patch),
            )
        }
        if model.known_codecs:
            batch["codec"] = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
        step = jit_step(config, graphdef, transformation, mesh, state)
        program = step.lower(state, batch)
        name = ":".join((path.stem, *arguments))
        lowered[name] = "num_partitions = 8" in program.as_text()
print(json.dumps(lowered))
