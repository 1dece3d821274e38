"""PromptCIR at half the resolution: the blind restorer that ships, on a CPU.

    cir encode --source photos/ --recipe online:web --crop 128 --out data/web
    python -m cir_jax.main --config=configs/promptcir_half.py:start
    python -m cir_jax.main --config=configs/promptcir_half.py:finish

First small patches, because what counts are steps, and the squared error, because of
bad images there is most to learn. Then large ones, because attention between channels
looks at as much as it is given, and the PSNR, by which good images count as much.

The weights that ship can be trained on, which is how they came to be what they are:

    python -m cir_jax.main --config=configs/promptcir_half.py:again
    python -m cir_jax.main --config=configs/promptcir_half.py:finish \
        --config.init_from=runs/promptcir_half_again --config.steps=5500

Hardware: 2 CPU cores. Hours and score: see cir_jax/weights/promptcir_half.md.
"""

from ml_collections import ConfigDict


def get_config(form: str = "start") -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    if form not in ("start", "again", "finish"):
        raise ValueError(
            f"form is {form!r}: give promptcir_half.py:start, :again or :finish"
        )
    start, finish = form == "start", form == "finish"
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict({"name": "promptcir", "variant": "half"})
    config.init_from = {
        "start": "",
        "again": "promptcir_half",
        "finish": "runs/promptcir_half_start",
    }[form]
    config.dtype = "float32"
    config.steps = {"start": 6_500, "again": 9_000, "finish": 3_300}[form]
    config.batch_size = 2 if finish else 4
    config.accumulate = 1
    config.rematerialise = "none"
    config.loss = "mse" if start else "psnr"
    config.ema_decay = 0.999
    config.trainable = ()

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = {"start": 1e-3, "again": 5e-4, "finish": 3e-4}[form]
    config.optimizer.final_learning_rate = 1e-6 if finish else 1e-4
    config.optimizer.warmup_steps = 200
    config.optimizer.decay = "cosine"
    config.optimizer.decay_at = ()
    config.optimizer.decay_factor = 1.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.05 if start else 20.0
    config.adversary = ConfigDict({"updates": "none", "learning_rate": 0.0})

    config.data = ConfigDict()
    config.data.records = "data/web"
    config.data.encode = (
        "cir encode --source photos/ --recipe online:web --crop 128 --out {records}"
    )
    config.data.encode_if_missing = False
    config.data.recipe = ""
    config.data.damaged = 0
    config.data.patch = 128 if finish else 64
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
    config.evaluation.qualities = (10, 40, 95)
    config.evaluation.every = 500

    config.checkpoint = ConfigDict({"every": 500, "keep": 2})
    config.log_every = 50
    config.tensorboard = False
    config.wandb = ""
    config.mesh = ConfigDict({"fsdp": 1})
    return config
