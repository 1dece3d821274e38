"""Perceive-IR's stage 1 (2408.15994): prompts that tell CLIP three qualities apart.

    python -m cir_jax.main --config=configs/perceive_ir_stage1.py

First come CLIP's weights, which are not part of this package, with tokenizer.json
beside them, and records in three tiers: README.md has the commands. Known from the
released code: prompts, loss, optimizer, schedule, crops and batch for one GPU.

Hardware: one GPU. Hours and score: not measured.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict({"name": "quality_perceiver", "context": 16})
    config.init_from = ""
    config.dtype = "bfloat16"
    config.steps = 100_000
    config.batch_size = 32
    config.accumulate = 1
    config.rematerialise = "none"
    config.loss = "cross_entropy"
    config.ema_decay = 0.0
    config.trainable = ()

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 4e-5
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
    config.data.records = "data/tiers"
    config.data.encode = (
        "cir tiers data/traditional --weights 1/2=runs/medium1 "
        "--weights 2/2=runs/medium2 -o {records}"
    )
    config.data.encode_if_missing = False
    config.data.recipe = ""
    config.data.damaged = 0
    config.data.patch = 224
    config.data.grid_phase = "random"
    config.data.qualities = ()
    config.data.tasks = ("jpeg", "hevc", "vvc")
    config.data.workers = 16

    config.guidance = ConfigDict({"proxies": ()})
    for name in ("dinov2", "prompts", "vgg16"):
        config.guidance[name] = ""
    config.guidance.clip = "weights/clip.safetensors"
    config.guidance.medium = "runs/medium1"

    config.evaluation = ConfigDict()
    config.evaluation.images = "photos:validation"
    config.evaluation.codec = "jpeg"
    config.evaluation.qualities = (10, 20, 30, 40)
    config.evaluation.every = 5_000

    config.checkpoint = ConfigDict({"every": 5_000, "keep": 3})
    config.log_every = 100
    config.tensorboard = False
    config.wandb = ""
    config.mesh = ConfigDict({"fsdp": 1})
    return config
