"""UCIP as published (2407.13108), blind: x4 of 23 degradations by six codecs.

    python -m cir_jax.main --config=configs/ucip.py --workdir=runs/ucip
    python -m cir_jax.main --config=configs/ucip.py:oracle --workdir=runs/ucip_oracle

The released code says all but the total batch and what the codec's number was: guesses
marked below. The second command tells the codec, the first predicts their mixture.

Hardware: 8 GPUs of 80 GB or a v4-32. Hours and score: not measured.
"""

from ml_collections import ConfigDict

LEARNED = ("compressai:cheng2020-attn:mse", "compressai:cheng2020-attn:ms-ssim")
CODECS = ("jpeg", "hevc", "vvc", *LEARNED, "hific")


def get_config(mode: str = "blind") -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    if mode not in ("blind", "oracle"):
        raise ValueError(f"mode is {mode!r}: give ucip.py, ucip.py:blind or :oracle")
    config = ConfigDict()
    config.seed = 1
    config.model = ConfigDict({"name": "ucip", "variant": "base", "codecs": CODECS})
    config.model.mixing = "pixel" if mode == "blind" else "codec"  # guess
    config.init_from = ""
    config.dtype = "bfloat16"
    config.steps = 300_000
    config.batch_size = 32  # guess
    config.accumulate = 1
    config.rematerialise = "none"
    config.loss = "l1"
    config.ema_decay = 0.999
    config.trainable = ()

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.final_learning_rate = 5e-5
    config.optimizer.warmup_steps = 0
    config.optimizer.decay = "step"
    config.optimizer.decay_at = (100_000, 200_000)
    config.optimizer.decay_factor = 0.5
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.adversary = ConfigDict({"updates": "none", "learning_rate": 0.0})

    config.data = ConfigDict()
    config.data.records = "data/ucsr"
    config.data.encode = (
        "cir encode --source DF2K --recipe ucsr --scale 4 --crop 512 --workers 16 "
        "--out {records}"
    )
    config.data.encode_if_missing = False
    config.data.recipe = ""
    config.data.damaged = 0
    config.data.patch = 64
    config.data.grid_phase = "random"
    config.data.qualities = ()
    config.data.tasks = ()
    config.data.workers = 16

    config.guidance = ConfigDict({"proxies": ()})
    for name in ("dinov2", "clip", "prompts", "vgg16", "medium"):
        config.guidance[name] = ""

    config.evaluation = ConfigDict()
    config.evaluation.images = "photos:validation"
    config.evaluation.codec = "jpeg"
    config.evaluation.qualities = (10, 20, 30, 40)
    config.evaluation.every = 10_000

    config.checkpoint = ConfigDict({"every": 5_000, "keep": 3})
    config.log_every = 100
    config.tensorboard = False
    config.wandb = ""
    config.mesh = ConfigDict({"fsdp": 1})
    return config
