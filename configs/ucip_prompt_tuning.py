"""UCIP's prompts tuned for a codec that it was not trained on, here WebP.

    python -m cir_jax.main --config=configs/ucip_quickstart.py
    python -m cir_jax.main --config=configs/ucip_prompt_tuning.py --workdir=runs/webp

Everything but the prompts stays as it is, to the last bit. Other weights: set init_from
and model to theirs. The distances at which tokens are mixed as well:
--config.trainable="('^prompts/', '/offset_layer/')"

Hardware: 2 CPU cores. Time and score: see RESULTS.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict({"name": "ucip", "variant": "XT"})
    config.init_from = "runs/ucip_quickstart"
    config.dtype = "float32"
    config.steps = 150
    config.batch_size = 4
    config.accumulate = 1
    config.rematerialise = "none"
    config.loss = "mse"
    config.ema_decay = 0.98
    config.trainable = ("^prompts/",)

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.final_learning_rate = 5e-5
    config.optimizer.warmup_steps = 10
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
        "cir encode --source photos:train --codec webp --quality 20 --scale 4 "
        "--crop 256 --stride 32 --out {records}"
    )
    config.data.encode_if_missing = True
    config.data.recipe = ""
    config.data.damaged = 0
    config.data.patch = 48
    config.data.grid_phase = "random"
    config.data.qualities = ()
    config.data.tasks = ()
    config.data.workers = 0

    config.guidance = ConfigDict({"proxies": ()})
    for name in ("dinov2", "clip", "prompts", "vgg16", "medium"):
        config.guidance[name] = ""

    config.evaluation = ConfigDict()
    config.evaluation.images = "photos:validation"
    config.evaluation.codec = "webp"
    config.evaluation.qualities = (20,)
    config.evaluation.every = 150

    config.checkpoint = ConfigDict({"every": 150, "keep": 2})
    config.log_every = 25
    config.tensorboard = False
    config.wandb = ""
    config.mesh = ConfigDict({"fsdp": 1})
    return config
