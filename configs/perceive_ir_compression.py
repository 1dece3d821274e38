"""Perceive-IR for compressed images: tasks are codecs (2408.15994, and our proposal).

    python -m cir_jax.main --config=configs/perceive_ir_compression.py
    python -m cir_jax.main --config=configs/perceive_ir_compression.py:full

Reduced: no semantic guidance, two losses of four. README.md has the second's files.

Hardware: one GPU. Hours and score: not measured.
"""

from ml_collections import ConfigDict


def get_config(form: str = "reduced") -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    if form not in ("reduced", "full"):
        raise ValueError(f"form is {form!r}: give :reduced or :full behind the file")
    full = form == "full"
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict({"name": "perceive_ir", "variant": "base"})
    config.model.semantics = "dinov2" if full else "none"
    config.init_from = ""
    config.dtype = "bfloat16"
    config.steps = 500_000
    config.batch_size = 8
    config.accumulate = 1
    config.rematerialise = "none"
    config.loss = "l1 + 0.1 contrastive"
    if full:
        config.loss += " + 0.05 clip_quality + 0.1 difficulty"
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
    config.data.records = "data/traditional"
    config.data.encode = (
        "cir encode --source DF2K --recipe ucsr-traditional --crop 512 --out {records}"
    )
    config.data.encode_if_missing = False
    config.data.recipe = ""
    config.data.damaged = 0
    config.data.patch = 256
    config.data.grid_phase = "random"
    config.data.qualities = ()
    config.data.tasks = ("jpeg", "hevc", "vvc")
    config.data.workers = 16

    config.guidance = ConfigDict({"proxies": (), "medium": ""})
    for name in ("dinov2", "clip", "vgg16"):
        config.guidance[name] = f"weights/{name}.safetensors" if full else ""
    stage1 = "runs/perceive_ir_stage1/prompts.safetensors"
    config.guidance.prompts = stage1 if full else ""

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
