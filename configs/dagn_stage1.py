"""DAGN's auto-encoders (2405.09291), a stand-in: only the abstract is known.

    python -m cir_jax.main --config=configs/dagn_stage1.py
    python -m cir_jax.main --config=configs/dagn_stage1.py:plain

The second command trains them without an adversary. All is a guess: networks, losses
and their weights, optimizer, schedule, patches, and qualities as FBCNN's training has
them. `config.model.codecs` and the recipe make it other codecs'.

Hardware: one GPU. Hours and score: not measured.
"""

from ml_collections import ConfigDict


def get_config(form: str = "adversarial") -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    if form not in ("adversarial", "plain"):
        raise ValueError(f"form is {form!r}: give :adversarial or :plain")
    game = form == "adversarial"
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict({"name": "dagn_features", "variant": "base"})
    config.model.adversarial = game
    config.init_from = ""
    config.dtype = "bfloat16"
    config.steps = 200_000
    config.batch_size = 32
    config.accumulate = 1
    config.rematerialise = "none"
    config.loss = "reconstruction + 0.5 quality + 0.5 ranking + 0.05 codec"
    config.loss += " + 0.05 hinge" if game else ""
    config.ema_decay = 0.999
    config.trainable = ()

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.final_learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.decay = "step"
    config.optimizer.decay_at = (100_000,)
    config.optimizer.decay_factor = 0.5
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.adversary = ConfigDict({"updates": "none", "learning_rate": 0.0})
    if game:
        config.adversary = ConfigDict({"updates": "alternating", "learning_rate": 1e-4})

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
