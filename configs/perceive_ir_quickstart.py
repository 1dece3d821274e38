"""Perceive-IR, extra tiny and without foundation models, on two codecs in minutes.

    python -m cir_jax.main --config=configs/perceive_ir_quickstart.py

The reduced form: no DINOv2, CLIP or VGG16, so no semantic guidance and two losses of
four. Not the paper's network, see cir_jax/models/perceive_ir.py.

Hardware: 2 CPU cores. Time and score: see RESULTS.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict({"name": "perceive_ir", "variant": "XT"})
    config.model.semantics = "none"
    config.init_from = ""
    config.dtype = "float32"
    config.steps = 3000
    config.batch_size = 4
    config.accumulate = 1
    config.rematerialise = "none"
    config.loss = "l1 + 0.1 contrastive"
    config.ema_decay = 0.99
    config.trainable = ()

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.final_learning_rate = 2e-5
    config.optimizer.warmup_steps = 20
    config.optimizer.decay = "cosine"
    config.optimizer.decay_at = ()
    config.optimizer.decay_factor = 1.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.adversary = ConfigDict({"updates": "none", "learning_rate": 0.0})

    config.data = ConfigDict()
    config.data.records = "{workdir}/records"
    config.data.encode = (
        "cir encode --source photos:train --recipe "
        "configs/jpeg_webp.toml --crop 128 --stride 64 --out {records}"
    )
    config.data.encode_if_missing = True
    config.data.recipe = ""
    config.data.damaged = 0
    config.data.patch = 64
    config.data.grid_phase = "random"
    config.data.qualities = ()
    config.data.tasks = ("jpeg", "webp")
    config.data.workers = 0

    config.guidance = ConfigDict({"proxies": ()})
    for name in ("dinov2", "clip", "prompts", "vgg16", "medium"):
        config.guidance[name] = ""

    config.evaluation = ConfigDict()
    config.evaluation.images = "photos:validation"
    config.evaluation.codec = "jpeg"
    config.evaluation.qualities = (10, 20)
    config.evaluation.every = 1500

    config.checkpoint = ConfigDict({"every": 750, "keep": 2})
    config.log_every = 25
    config.tensorboard = False
    config.wandb = ""
    config.mesh = ConfigDict({"fsdp": 1})
    return config
