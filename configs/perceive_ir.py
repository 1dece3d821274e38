"""Perceive-IR as released (2408.15994): stage 2, all-in-one on three or five tasks.

    python -m cir_jax.main --config=configs/perceive_ir.py:3 --workdir=runs/perceive_ir
    python -m cir_jax.main --config=configs/perceive_ir.py:5 --workdir=runs/perceive5

First come each task's records, the files under guidance and stage 1, see README.md.
Known from the released code: network, losses, optimizer, schedule, patch, resampling.
Not its proxies: here it is stage 1's restorer alone.

Hardware: 4 GPUs for three tasks, 2 for five. Hours and score: not measured.
"""

from ml_collections import ConfigDict

THREE = {"noise": 12, "haze": 1, "rain": 360}
REPEATS = {"3": THREE, "5": THREE | {"blur": 30, "low-light": 140}}


def get_config(tasks: str = "3") -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    if tasks not in ("3", "5"):
        raise ValueError(f"tasks is {tasks!r}: give :3 or :5 behind the file's name")
    names, repeats = zip(*REPEATS[tasks].items(), strict=True)
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict({"name": "perceive_ir", "variant": "base"})
    config.init_from = ""
    config.dtype = "bfloat16"
    config.steps = 500_000
    config.batch_size = 8 if tasks == "3" else 4
    config.accumulate = 1
    config.rematerialise = "none"
    config.loss = "l1 + 0.1 contrastive + 0.05 clip_quality + 0.1 difficulty"
    config.ema_decay = 0.0
    config.trainable = ()

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.final_learning_rate = 1e-6
    config.optimizer.warmup_steps = 0
    config.optimizer.decay = "cosine"
    config.optimizer.decay_at = ()
    config.optimizer.decay_factor = 1.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 0.0
    config.adversary = ConfigDict({"updates": "none", "learning_rate": 0.0})

    config.data = ConfigDict()
    config.data.records = f"data/all-in-one-{tasks}"
    mix = (f"--add {n} data/{task}" for n, task in zip(repeats, names, strict=True))
    config.data.encode = f"cir mix {' '.join(mix)} -o {{records}}"
    config.data.encode_if_missing = False
    config.data.recipe = ""
    config.data.damaged = 0
    config.data.patch = 256
    config.data.grid_phase = "random"
    config.data.qualities = ()
    config.data.tasks = names
    config.data.workers = 16

    config.guidance = ConfigDict({"medium": "", "proxies": ("runs/medium1",)})
    for name in ("dinov2", "clip", "vgg16"):
        config.guidance[name] = f"weights/{name}.safetensors"
    config.guidance.prompts = "runs/perceive_ir_stage1/prompts.safetensors"

    config.evaluation = ConfigDict()
    config.evaluation.images = "photos:validation"
    config.evaluation.codec = "noise"
    config.evaluation.qualities = (15, 25, 50)
    config.evaluation.every = 5_000

    config.checkpoint = ConfigDict({"every": 5_000, "keep": 3})
    config.log_every = 100
    config.tensorboard = False
    config.wandb = ""
    config.mesh = ConfigDict({"fsdp": 1})
    return config
