"""DAGN (2405.09291), a stand-in: only the abstract is known.

    python -m cir_jax.main --config=configs/dagn_stage1.py
    python -m cir_jax.main --config=configs/dagn.py
    python -m cir_jax.main --config=configs/dagn.py:sensitive

Its encoders are the first command's, and stay as they are. The forms :none, :sensitive
and :insensitive leave features out. All is a guess: network, loss, optimizer, schedule,
patches, and qualities as FBCNN's training has them.

Hardware: one GPU. Hours and score: not measured.
"""

from ml_collections import ConfigDict


def get_config(guidance: str = "both") -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    if guidance not in ("none", "sensitive", "insensitive", "both"):
        raise ValueError(f":{guidance}: give :none, :sensitive, :insensitive or :both")
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict({"name": "dagn", "variant": "base"})
    config.model.guidance = guidance
    config.init_from = "" if guidance == "none" else "runs/dagn_stage1"
    config.dtype = "bfloat16"
    config.steps = 400_000
    config.batch_size = 32
    config.accumulate = 1
    config.rematerialise = "none"
    config.loss = "l1"
    config.ema_decay = 0.999
    config.trainable = ("^(?!sensitive|insensitive)",)  # encoders stay

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.final_learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.decay = "step"
    config.optimizer.decay_at = (100_000, 200_000, 300_000)
    config.optimizer.decay_factor = 0.5
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.adversary = ConfigDict({"updates": "none", "learning_rate": 0.0})

    config.data = ConfigDict()
    config.data.records = "data/df2k-clean"
    config.data.encode = (
        "cir encode --source DF2K --recipe online:blind-jpeg --crop 256 --workers 16 "
        "--out {records}"
    )
    config.data.encode_if_missing = False
    config.data.recipe = ""
    config.data.damaged = 0
    config.data.patch = 128
    config.data.grid_phase = "random"
    config.data.qualities = ()
    config.data.tasks = ()
    config.data.workers = 16

    config.guidance = ConfigDict({"proxies": ()})
    for name in ("dinov2", "clip", "prompts", "vgg16", "medium"):
        config.guidance[name] = ""
    config.evaluation = ConfigDict({"images": "photos:validation", "codec": "jpeg"})
    config.evaluation.qualities = (10, 20, 30, 40)
    config.evaluation.every = 10_000
    config.checkpoint = ConfigDict({"every": 5_000, "keep": 3})
    config.log_every = 100
    config.tensorboard = False
    config.wandb = ""
    config.mesh = ConfigDict({"fsdp": 1})
    return config
