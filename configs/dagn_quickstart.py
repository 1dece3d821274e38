"""DAGN, extra tiny, on the photographs that ship: stage 2 in minutes.

    python -m cir_jax.main --config=configs/dagn_stage1_quickstart.py
    python -m cir_jax.main --config=configs/dagn_quickstart.py
    bash launch/dagn_ablation.sh runs/dagn_ablation

The third command trains both stages with and without an adversary and with all choices
of features, and prints their table. DAGN-style, see cir_jax/models/dagn.py: not the
paper's network.

Hardware: 2 CPU cores. Time and scores: see RESULTS.md.
"""

from ml_collections import ConfigDict


def get_config(guidance: str = "both") -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    if guidance not in ("none", "sensitive", "insensitive", "both"):
        raise ValueError(f":{guidance}: give :none, :sensitive, :insensitive or :both")
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict({"name": "dagn", "variant": "XT"})
    config.model.guidance = guidance
    config.init_from = "" if guidance == "none" else "runs/dagn_stage1_quickstart"
    config.dtype = "float32"
    config.steps = 1000
    config.batch_size = 4
    config.accumulate = 1
    config.rematerialise = "none"
    config.loss = "l1"
    config.ema_decay = 0.99
    config.trainable = ("^(?!sensitive|insensitive)",)  # encoders stay

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
        "cir encode --source photos:train --codec jpeg --quality 10:40:10 "
        "--crop 128 --stride 64 --out {records}"
    )
    config.data.encode_if_missing = True
    config.data.recipe = ""
    config.data.damaged = 0
    config.data.patch = 64
    config.data.grid_phase = "random"
    config.data.qualities = ()
    config.data.tasks = ()
    config.data.workers = 0

    config.guidance = ConfigDict({"proxies": ()})
    for name in ("dinov2", "clip", "prompts", "vgg16", "medium"):
        config.guidance[name] = ""
    config.evaluation = ConfigDict({"images": "photos:validation", "codec": "jpeg"})
    config.evaluation.qualities = (10, 20, 30, 40)
    config.evaluation.every = 500
    config.checkpoint = ConfigDict({"every": 250, "keep": 2})
    config.log_every = 25
    config.tensorboard = False
    config.wandb = ""
    config.mesh = ConfigDict({"fsdp": 1})
    return config
