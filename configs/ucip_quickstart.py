"""UCIP, extra tiny: x4 of JPEG on the photographs that ship, in minutes.

    python -m cir_jax.main --config=configs/ucip_quickstart.py

Hardware: 2 CPU cores. Time and score: see RESULTS.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict({"name": "ucip", "variant": "XT"})
    config.init_from = ""
    config.dtype = "float32"
    config.steps = 600
    config.batch_size = 4
    config.accumulate = 1
    config.rematerialise = "none"
    config.loss = "mse"  # so few steps gain more PSNR by it than by an absolute loss
    config.ema_decay = 0.99
    config.trainable = ()

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.final_learning_rate = 1e-5
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
        "cir encode --source photos:train --codec jpeg --quality 10 --scale 4 "
        "--crop 256 --stride 32 --out {records}"
    )
    config.data.encode_if_missing = True
    config.data.recipe = ""
    config.data.damaged = 0
    config.data.patch = 48  # of the 64 there are: whole-image statistics want much
    config.data.grid_phase = "random"
    config.data.qualities = ()
    config.data.tasks = ()
    config.data.workers = 0

    config.guidance = ConfigDict({"proxies": ()})
    for name in ("dinov2", "clip", "prompts", "vgg16", "medium"):
        config.guidance[name] = ""

    config.evaluation = ConfigDict()
    config.evaluation.images = "photos:validation"
    config.evaluation.codec = "jpeg"
    config.evaluation.qualities = (10,)
    config.evaluation.every = 300

    config.checkpoint = ConfigDict({"every": 100, "keep": 2})
    config.log_every = 25
    config.tensorboard = False
    config.wandb = ""
    config.mesh = ConfigDict({"fsdp": 1})
    return config
