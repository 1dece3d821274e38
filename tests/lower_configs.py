"""Lowers configs' training steps on all devices; run by test_main.py.

Every stage of every config is set up, with the shapes and places of all that its step
takes; those that have a larger one beside them, of the same network, go no further, and
those that are guided by files are left out.
Prints into how many parts each program is cut.
"""

import json
import re
from pathlib import Path

import jax

from cir_jax import plan
from cir_jax.train_step import jit_step

LOWERED = (
    "promptcir.py:online",
    "ucip.py:oracle",
    "ucip_prompt_tuning.py",
)

parts = {}
for path in plan.shipped():
    name = Path(path).name
    config, meant = plan.load(path)
    if any(config.guidance.values()):  # what it is guided by is not here
        parts[name] = None
        continue
    plan.fit_batch(config, meant, jax.device_count())
    *arguments, state, batch, frozen = plan.training(config)
    step = jit_step(*arguments, state)
    parts[name] = None
    if name in LOWERED:
        text = step.lower(state, batch, frozen).as_text()
        parts[name] = int(re.search(r"num_partitions = (\d+)", text)[1])
print(json.dumps(parts))
