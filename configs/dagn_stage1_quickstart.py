"""DAGN's auto-encoders, extra tiny, on the photographs that ship: stage 1 in minutes.

    python -m cir_jax.main --config=configs/dagn_stage1_quickstart.py
    python -m cir_jax.feature_scores runs/dagn_stage1_quickstart
    python -m cir_jax.main --config=configs/dagn_stage1_quickstart.py:plain

The third command trains them without an adversary. DAGN-style, see
cir_jax/models/dagn.py: not the paper's networks.

Hardware: 2 CPU cores. Time and scores: see RESULTS.md.
"""

from ml_collections import ConfigDict


def get_config(form: str = "adversarial") -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    if form not in ("adversarial", "plain"):
        raise ValueError(f"form is {form!r}: give :adversarial or :plain")
    game = form == "adversarial"
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict({"name": "dagn_features", "variant": "XT"})
    config.model.adversarial = game
    config.init_from = ""
    config.dtype = "float32"
    config.steps = 1200
    config.batch_size = 8
    config.accumulate = 1
    config.rematerialise = "none"
    config.loss = "reconstruction + 0.5 quality + 0.5 ranking + 0.05 codec"
    config.loss += " + 0.05 hinge" if game else ""
    config.ema_decay = 0.99
    config.trainable = ()

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 4e-3
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
    if game:
        config.adversary = ConfigDict({"updates": "alternating", "learning_rate": 2e-3})

    config.data = ConfigDict()
    config.data.records = "{workdir}/records"
    config.data.encode = (
        "cir encode --source photos:train --codec jpeg "
        "--quality 5,8,12,16,20,30,40,60,80,95 --crop 128 --stride 64 --out {records}"
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
    config.evaluation.qualities = (10, 40)
    config.evaluation.every = 600
    config.checkpoint = ConfigDict({"every": 300, "keep": 2})
    config.log_every = 25
    config.tensorboard = False
    config.wandb = ""
    config.mesh = ConfigDict({"fsdp": 1})
    return config
