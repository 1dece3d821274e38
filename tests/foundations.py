"""Files of small foundation models, made up, in the layouts that they are published in.

Their attention has a head for every 64 channels, as published ones have.
"""

from pathlib import Path

import numpy as np
from golden_weights import encoder_keys, made_up_encoder

from cir_jax import torch_file, weights
from cir_jax.encoders.prompts import write_prompts

WIDTHS = {24: 48, 32: 64, 48: 64, 64: 128, 96: 128, 128: 256}
"""The goldens' to ours, of which attention heads have 64."""
WIDTH = 64
"""Of class tokens, and of the vectors of prompts."""
VGG16 = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}


def write(folder: Path) -> dict[str, str]:
    """Writes all of them; tells each one's path as `config.guidance` has it."""
    dinov2 = _shapes("dinov2_tiny")
    layer = {n: shape for n, shape in dinov2.items() if ".layer.0." in n}
    for number in range(12):
        dinov2 |= {n.replace(".0.", f".{number}.", 1): s for n, s in layer.items()}
    paths = {
        name: folder / f"{name}.safetensors" for name in ("dinov2", "clip", "prompts")
    }
    weights.write(paths["dinov2"], made_up_encoder(dinov2), {})
    weights.write(paths["clip"], _clip(), {})
    rng = np.random.default_rng(0)
    context = rng.normal(0, 0.5, (3, 4, WIDTH)).astype(np.float32)
    write_prompts(paths["prompts"], context, {})
    paths["vgg16"] = folder / "vgg16.pth"
    tensors, channels = {}, 3
    for number, width in VGG16.items():
        kernel = rng.standard_normal((width, channels, 3, 3), np.float32)
        tensors[f"features.{number}.weight"] = kernel * np.sqrt(2 / (9 * channels))
        tensors[f"features.{number}.bias"] = np.zeros(width, np.float32)
        channels = width
    torch_file.write(
        paths["vgg16"], {n: np.float32(tensor) for n, tensor in tensors.items()}
    )
    return {name: str(path) for name, path in paths.items()}


def _clip() -> dict[str, np.ndarray]:
    """Of 32x32 pixels in patches of 4.

    Its patch embedding takes second differences of the pixels and so is blind to how
    light a patch is: a random one sees little else, and qualities differ by less.
    """
    shapes = _shapes("clip_tiny")
    for name, shape in shapes.items():
        if name.startswith("vis"):
            wide = {64: 128, 128: 256, 48: 128}
            shapes[name] = tuple(wide.get(size, size) for size in shape)
    shapes["vision_model.embeddings.patch_embedding.weight"] = (128, 3, 4, 4)
    shapes["vision_model.embeddings.position_embedding.weight"] = (65, 128)
    shapes["visual_projection.weight"] = (128, 128)
    shapes["text_projection.weight"] = (128, 64)
    tensors = made_up_encoder(shapes)
    kernel = tensors["vision_model.embeddings.patch_embedding.weight"]
    for axis in (2, 3):
        kernel = np.diff(kernel, axis=axis, append=0)
    kernel = kernel - kernel.mean(axis=(2, 3), keepdims=True)
    tensors["vision_model.embeddings.patch_embedding.weight"] = 2 * kernel
    tensors["vision_model.embeddings.position_embedding.weight"] *= np.float32(0.1)
    return tensors


def _shapes(golden: str) -> dict[str, tuple[int, ...]]:
    """A golden's shapes with our widths; positions, patches and words stay."""
    return {
        name: tuple(
            size if size in (3, 8, 10, 14, 16, 17, 100) else WIDTHS.get(size, size)
            for size in shape
        )
        for name, shape in encoder_keys(golden).items()
    }
