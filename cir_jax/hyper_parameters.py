"""Hyper-parameters of official networks, read off their tensors' names and shapes.

A network that is to be converted adds a row to `_NETWORKS`, under the name of a
tensor that only it has.
"""

import itertools
from collections.abc import Callable, Mapping
from math import ceil, isqrt
from typing import Any

from cir_jax.errors import UserError
from cir_jax.models.ucip_blocks import makes_offsets

Shapes = Mapping[str, tuple[int, ...]]
MOST = 10_000
"""Tensors of a state dict; the largest network has 1,100."""


def network_name(shapes: Shapes) -> str:
    """Which network of ours an official state dict belongs to.

    Args:
        shapes: the shape of each tensor, under its official name.

    Raises:
        UserError: the names are no known network's.
    """
    for signature, (name, _) in _NETWORKS.items():
        if signature in shapes:
            return name
    some = ", ".join(repr(name) for name in list(shapes)[:5])
    known = ", ".join(name for name, _ in _NETWORKS.values())
    raise UserError(
        f"no known network has tensors of these {len(shapes)} names: {some}...; known "
        f"are {known}"
    )


def infer_config(shapes: Shapes) -> dict[str, Any]:
    """Reads a network's name and hyper-parameters off its official state dict.

    Args:
        shapes: the shape of each tensor, under its official name.

    Returns:
        A config for `build_model` that leaves no hyper-parameter to a default.

    Raises:
        UserError: the names are no known network's, or a tensor that tells is missing
            or has a shape from which nothing can be told.
    """
    name = network_name(shapes)
    infer = dict(_NETWORKS.values())[name]
    # Else a small file could ask for a network that takes hours or gigabytes to build.
    if len(shapes) > MOST:
        raise UserError(f"a state dict of {len(shapes)} tensors is not of {name}")
    if empty := [key for key, shape in shapes.items() if 0 in shape]:
        raise UserError(f"the state dict of {name} has no numbers in {empty[0]}")
    try:
        return {"name": name, **infer(shapes)}
    except KeyError as missing:
        raise UserError(
            f"the state dict of {name} has no {missing}, it is not complete"
        ) from missing
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"the state dict of {name} has tensors of odd shapes ({error})"
        ) from error


def _promptcir_config(shapes: Shapes) -> dict[str, Any]:
    dim = shapes["patch_embed_input.proj.weight"][0]
    hybrid = [f"encoder_level{level}.residual_group" for level in (1, 2)]
    blocks = [f"{group}.blocks" for group in hybrid] + ["encoder_level3", "latent"]
    table = "attn.relative_position_bias_table"
    window = (isqrt(shapes[f"{blocks[0]}.0.{table}"][0]) + 1) // 2
    banks = [shapes[f"prompt{level}.prompt"] for level in (1, 2, 3)]
    return {
        "dim": dim,
        "num_blocks": [count(shapes, prefix) for prefix in blocks],
        "num_refinement_blocks": count(shapes, "refinement"),
        "heads": [
            *(shapes[f"{prefix}.0.{table}"][1] for prefix in blocks[:2]),
            *(shapes[f"{prefix}.0.attn.temperature"][0] for prefix in blocks[2:]),
        ],
        "ffn_expansion": _ffn_expansion(shapes),
        "window_size": window,
        "num_tasks": banks[0][1],
        "num_bases": [bank[2] for bank in banks],
        "prompt_dims": [bank[3] for bank in banks],
        "prompt_heads": shapes["noise_level3.attn.temperature"][0],
        "channels": shapes["output.weight"][0],
        "unshuffle": 1,
    }


def _restormer_config(shapes: Shapes) -> dict[str, Any]:
    levels = ["encoder_level1", "encoder_level2", "encoder_level3", "latent"]
    with_bias = "latent.0.norm1.body.bias" in shapes
    return {
        "dim": shapes["patch_embed.proj.weight"][0],
        "num_blocks": [count(shapes, level) for level in levels],
        "num_refinement_blocks": count(shapes, "refinement"),
        "heads": [shapes[f"{level}.0.attn.temperature"][0] for level in levels],
        "ffn_expansion": _ffn_expansion(shapes),
        "bias": "output.bias" in shapes,
        "norm": "with_bias" if with_bias else "bias_free",
        "channels": shapes["output.weight"][0],
    }


def _promptir_config(shapes: Shapes) -> dict[str, Any]:
    banks = [shapes[f"prompt{level}.prompt_param"] for level in (1, 2, 3)]
    return _restormer_config(shapes) | {
        "prompt_length": banks[0][1],
        "prompt_sizes": [bank[3] for bank in banks],
        "prompt_dims": [bank[2] for bank in banks],
        "prompt_heads": shapes["noise_level3.attn.temperature"][0],
    }


def _perceive_ir_config(shapes: Shapes) -> dict[str, Any]:
    plain = ["encoder1", "encoder2", "encoder3"]
    temperatures = [f"{level}.0.attention.temperature" for level in plain]
    content = shapes["cfe.projection.weight"][0]
    return {
        "dim": shapes["embed.weight"][0],
        "num_blocks": [count(shapes, level) for level in [*plain, "latent.blocks"]],
        "num_refinement_blocks": count(shapes, "refinement"),
        "heads": [
            shapes[name][0]
            for name in [*temperatures, "latent.blocks.0.mdta.temperature"]
        ],
        "ffn_expansion": _ffn_expansion(shapes),
        "content_dim": content,
        "semantics": "dinov2",
        "semantic_dim": shapes["pgm.0.affine.0.weight"][1] - content,
        "design": "released",
        "channels": shapes["output.weight"][0],
    }


def count(shapes: Shapes, prefix: str) -> int:
    """How many blocks `prefix.0`, `prefix.1`, ... there are."""
    start = prefix.count(".") + 1
    return len({n.split(".")[start] for n in shapes if n.startswith(f"{prefix}.")})


def _ffn_expansion(shapes: Shapes) -> float:
    """The shortest decimal that gives each feed-forward network its hidden width.

    Widths are rounded down, so each of them leaves an interval of expansions.
    """
    widths = [
        (shape[0], shape[1])
        for name, shape in shapes.items()
        if name.endswith("ffn.project_out.weight")
    ]
    low = max(hidden / channels for channels, hidden in widths)
    # The next decimal as well: products of the first may be rounded to below a width.
    for digits, more in itertools.product(range(1, 18), (0, 1)):
        expansion = (ceil(low * 10**digits) + more) / 10**digits
        if all(int(channels * expansion) == hidden for channels, hidden in widths):
            return expansion
    raise UserError(f"no single expansion gives the feed-forward widths {widths}")


def _ucip_config(shapes: Shapes) -> dict[str, Any]:
    width = shapes["patch_embed.proj.weight"][0]
    codecs, bases, _, _, prompt_dim = shapes["prompts.0.prompt"]
    depths = [count(shapes, f"blocks.{i}") for i in range(count(shapes, "blocks"))]
    return {
        "width": width,
        "depths": depths,
        "prompt_dim": prompt_dim,
        "bases": bases,
        "mlp_ratio": shapes["blocks.0.0.mlp.fc1.weight"][0] / width,
        "share": 2 * width // shapes["blocks.0.0.offset_layer.1.weight"][0],
        "offset_every": _offset_every(shapes, depths),
        "head_width": shapes["conv_hr.weight"][0],
        "scale": 4 if "conv_up1.weight" in shapes else 1,
        "skip": False,
        "mixing": "codec",
        "codecs": [str(i) for i in range(codecs)],
        "channels": shapes["conv_last.weight"][0],
    }


def _offset_every(shapes: Shapes, depths: list[int]) -> int:
    """How many blocks use the same offsets.

    As released (2) where shallow groups leave it open: the network is the same then.
    """
    there = [
        f"blocks.{i}.{j}.offset_layer.1.weight" in shapes
        for i, depth in enumerate(depths)
        for j in range(depth)
    ]
    for every in (2, *range(1, max(depths))):
        if there == [new for d in depths for new in makes_offsets(d, every)]:
            return every
    raise UserError(f"no single interval gives the offset layers {there} of {depths}")


# A tensor by which a network is recognised -> its name, how to read its
# hyper-parameters. Restormer has none of its own: PromptIR has all of them, and is
# looked for first.
_NETWORKS: dict[str, tuple[str, Callable[[Shapes], dict[str, Any]]]] = {
    "prompt1.basis_mlp.fc1.weight": ("promptcir", _promptcir_config),
    "prompts.0.basis_mlp.fc1.weight": ("ucip", _ucip_config),
    "prompt1.prompt_param": ("promptir", _promptir_config),
    "cfe.projection.weight": ("perceive_ir", _perceive_ir_config),
    "encoder_level1.0.attn.temperature": ("restormer", _restormer_config),
}
SIGNATURES = tuple(_NETWORKS)
"""Names of tensors by which networks are recognised."""
