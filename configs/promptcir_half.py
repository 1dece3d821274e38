"""PromptCIR at half the resolution: the blind restorer that ships, on a CPU.

    python -m data_pipelines.drawings --out photos/drawings
    cir encode --source photos/ --recipe online:web --crop 128 --out data/web
    python -m cir_jax.main --config=configs/promptcir_half.py:start
    python -m cir_jax.main --config=configs/promptcir_half.py:finish

First small patches, because what counts are steps, and the squared error, because of
bad images there is most to learn. Then large ones, because attention between channels
looks at as much as it is given, and the PSNR, by which good images count as much.
`:again` trains what ships further, which is how it came to be; a part of its loss is
the squared error, or else near-perfect images outweigh all others.

Hardware: 2 CPU cores. Hours and score: see cir_jax/weights/promptcir_half.md.
"""

from ml_collections import ConfigDict

FORMS = {
    "start": dict(
        init_from="", steps=6_500, batch_size=4, patch=64, loss="mse",
        learning_rate=1e-3, final_learning_rate=1e-4, clip_norm=0.05,
    ),
    "finish": dict(
        init_from="runs/promptcir_half_start", steps=3_300, batch_size=2, patch=128,
        loss="psnr", learning_rate=3e-4, final_learning_rate=1e-6, clip_norm=20.0,
    ),
    "again": dict(
        init_from="promptcir_half", steps=9_000, batch_size=4, patch=96,
        loss="psnr + 1000 mse", learning_rate=2.5e-4, final_learning_rate=1e-6,
        clip_norm=20.0,
    ),
}  # fmt: skip
ENCODE = "cir encode --source photos/ --recipe online:web --crop 128 --out {records}"


def get_config(form: str = "start") -> ConfigDict:
    """The experiment; cir_jax/experiment.py says what each field means."""
    if form not in FORMS:
        raise ValueError(
            f"form is {form!r}: give promptcir_half.py:{' or :'.join(FORMS)}"
        )
    chosen = FORMS[form]
    config = ConfigDict({"seed": 0, "dtype": "float32", "accumulate": 1})
    config.model = ConfigDict({"name": "promptcir", "variant": "half"})
    for name in ("init_from", "steps", "batch_size", "loss"):
        config[name] = chosen[name]
    config.rematerialise = "none"
    config.ema_decay = 0.999
    config.trainable = ()

    config.optimizer = ConfigDict({"name": "adamw", "b1": 0.9, "b2": 0.999})
    for name in ("learning_rate", "final_learning_rate", "clip_norm"):
        config.optimizer[name] = chosen[name]
    config.optimizer.warmup_steps = 200
    config.optimizer.decay = "cosine"
    config.optimizer.decay_at = ()
    config.optimizer.decay_factor = 1.0
    config.optimizer.weight_decay = 0.0
    config.adversary = ConfigDict({"updates": "none", "learning_rate": 0.0})

    config.data = ConfigDict({"records": "data/web", "encode": ENCODE})
    config.data.update({"encode_if_missing": False, "recipe": "", "damaged": 0})
    config.data.update({"patch": chosen["patch"], "grid_phase": "random"})
    config.data.update({"qualities": (), "tasks": (), "workers": 0})
    config.guidance = ConfigDict({"proxies": ()})
    for name in ("dinov2", "clip", "prompts", "vgg16", "medium"):
        config.guidance[name] = ""

    config.evaluation = ConfigDict({"images": "photos:validation", "codec": "jpeg"})
    config.evaluation.update({"qualities": (10, 40, 95), "every": 500})
    config.checkpoint = ConfigDict({"every": 500, "keep": 2})
    config.log_every = 50
    config.tensorboard = False
    config.wandb = ""
    config.mesh = ConfigDict({"fsdp": 1})
    return config
