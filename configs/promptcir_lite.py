"""PromptCIR, variant S: a blind JPEG restorer that one GPU trains in hours.

    python -m cir_jax.main --config=configs/promptcir_lite.py --workdir=runs/lite

Give any folder of clean images as DF2K below; DIV2K and Flickr2K are the usual ones.

Hardware: one GPU of 24 GB or more. Hours and score: not measured.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict({"name": "promptcir", "variant": "S"})
    config.init_from = ""
    config.dtype = "bfloat16"
    config.steps = 200_000
    config.batch_size = 16
    config.accumulate = 1
    config.rematerialise = "none"
    config.loss = "charbonnier"
    config.ema_decay = 0.999
    config.trainable = ()

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.final_learning_rate = 1e-6
    config.optimizer.warmup_steps = 1_000
    config.optimizer.decay = "cosine"
    config.optimizer.decay_at = ()
    config.optimizer.decay_factor = 1.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 1.0
    config.adversary = ConfigDict({"updates": "none", "learning_rate": 0.0})

    config.data = ConfigDict()
    config.data.records = "data/df2k"
    config.data.encode = (
        "cir encode --source DF2K --recipe online:blind-jpeg --crop 256 --workers 8 "
        "--out {records}"
    )
    config.data.encode_if_missing = False
    config.data.recipe = ""
    config.data.damaged = 0
    config.data.patch = 128
    config.data.grid_phase = "random"
    config.data.qualities = ()
    config.data.tasks = ()
    config.data.workers = 8

    config.guidance = ConfigDict({"proxies": ()})
    for name in ("dinov2", "clip", "prompts", "vgg16", "medium"):
        config.guidance[name] = ""

    config.evaluation = ConfigDict()
    config.evaluation.images = "photos:validation"
    config.evaluation.codec = "jpeg"
    config.evaluation.qualities = (10, 20, 30, 40)
    config.evaluation.every = 5_000

    config.checkpoint = ConfigDict({"every": 2_500, "keep": 3})
    config.log_every = 100
    config.tensorboard = False
    config.wandb = ""
    config.mesh = ConfigDict({"fsdp": 1})
    return config
