"""PromptCIR as published (2404.17433), as far as its training is known.

    python -m cir_jax.main --config=configs/promptcir.py:offline --workdir=runs/stage1
    python -m cir_jax.main --config=configs/promptcir.py:online --workdir=runs/stage2

Two stages: seven predefined qualities, then qualities at random from where the first
ended. Known: the network, the two stages, DF2K + LSDIR, patch 128. Guesses, marked
below: which qualities, loss, optimizer, schedule, batch, EMA, the second stage's patch.

Hardware: 8 GPUs of 80 GB or a v4-32. Hours and score: not measured.
"""

from ml_collections import ConfigDict


def get_config(stage: str = "offline") -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    if stage not in ("offline", "online"):
        raise ValueError(f"stage is {stage!r}: give promptcir.py:offline or :online")
    offline = stage == "offline"
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict({"name": "promptcir", "variant": "base"})
    config.init_from = "" if offline else "runs/stage1"
    config.dtype = "bfloat16"
    config.steps = 400_000 if offline else 100_000  # guess
    config.batch_size = 32  # guess
    config.accumulate = 1
    config.rematerialise = "none"
    config.loss = "l1"  # guess
    config.ema_decay = 0.999  # guess
    config.trainable = ()

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-4 if offline else 1e-4  # guess, and all below
    config.optimizer.final_learning_rate = 1e-6
    config.optimizer.warmup_steps = 0
    config.optimizer.decay = "cosine"
    config.optimizer.decay_at = ()
    config.optimizer.decay_factor = 1.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 0.0
    config.adversary = ConfigDict({"updates": "none", "learning_rate": 0.0})

    recipe = "jpeg7" if offline else "online:blind-jpeg"  # guess
    config.data = ConfigDict()
    config.data.records = f"data/df2k-lsdir-{'jpeg7' if offline else 'clean'}"
    config.data.encode = (
        f"cir encode --source DF2K_LSDIR --recipe {recipe} --crop 512 --workers 16 "
        "--out {records}"
    )
    config.data.encode_if_missing = False
    config.data.recipe = ""
    config.data.damaged = 0
    config.data.patch = 128 if offline else 256  # the second is a guess
    config.data.grid_phase = "aligned" if offline else "random"  # guess
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
