"""Official PyTorch state dicts to our networks, exactly, and back.

Names: our attribute paths follow the official ones; `_RENAMED` lists where they do not,
by the class that holds the attribute. Layouts: `_LAYOUTS` says how a parameter of a
layer is stored officially. A network that is to be converted adds its rows there, and
a function to `_INFER` that reads its hyper-parameters off the tensors' shapes.
"""

from collections.abc import Callable, Mapping
from math import ceil, isqrt
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from cir_jax.errors import UserError
from cir_jax.models import abstract_model, layers, promptcir, ucip
from cir_jax.ops.window_attention import relative_position_index

Shapes = Mapping[str, tuple[int, ...]]

# --- names and layouts ---------------------------------------------------------------

_RENAMED: dict[type, dict[str, str]] = {
    nnx.Sequential: {"layers": ""},
    layers.TransformerBlock: {"norm1": "norm1.body", "norm2": "norm2.body"},
    layers.Downsample: {"conv": "body.0"},
    layers.Upsample: {"conv": "body.0"},
    promptcir.PromptCIR: {"patch_embed_input": "patch_embed_input.proj"},
    promptcir.RHAG: {
        "blocks": "residual_group.blocks",
        "overlap_attn": "residual_group.overlap_attn",
    },
    promptcir.CAB: {
        "compress": "cab.0",
        "expand": "cab.2",
        "gate_in": "cab.3.attention.1",
        "gate_out": "cab.3.attention.3",
    },
    ucip.UCIP: {"patch_embed": "patch_embed.proj", "head": ""},
    ucip.PTMB: {"blocks": ""},
    ucip.SPADE: {"mlp_shared": "mlp_shared.0"},
    ucip.Reconstruction: {"conv_before_up": "conv_before_up.0"},
}


class _Layout(NamedTuple):
    name: str
    to_official: Callable[[np.ndarray], np.ndarray]
    from_official: Callable[[np.ndarray], np.ndarray]


def _same(x: np.ndarray) -> np.ndarray:
    return x


_POINTWISE = _Layout(
    "weight", lambda x: x.T[:, :, None, None], lambda x: x[:, :, 0, 0].T
)

_LAYOUTS: dict[tuple[type, str], _Layout] = {
    (layers.Linear, "kernel"): _Layout("weight", np.transpose, np.transpose),
    (layers.PointwiseConv, "kernel"): _POINTWISE,
    (ucip.AxialMixing, "kernel"): _POINTWISE,
    (nnx.Conv, "kernel"): _Layout(
        "weight", lambda x: x.transpose(3, 2, 0, 1), lambda x: x.transpose(2, 3, 1, 0)
    ),
    (layers.DepthwiseConv, "kernel"): _Layout(
        "weight",
        lambda x: x.transpose(2, 0, 1)[:, None],
        lambda x: x[:, 0].transpose(1, 2, 0),
    ),
    (layers.LayerNorm, "scale"): _Layout("weight", _same, _same),
    (promptcir.DPM, "prompt"): _Layout(
        "prompt", lambda x: x[None, ..., None, None], lambda x: x[0, ..., 0, 0]
    ),
    (ucip.DPM, "prompt"): _Layout(
        "prompt", lambda x: x[:, :, None, None], lambda x: x[:, :, 0, 0]
    ),
}

# What training wrappers put in front of every name.
_WRAPPERS = ("module.", "net.")

# --- there and back ------------------------------------------------------------------


def from_state_dict(
    tensors: Mapping[str, np.ndarray], *, dtype: Dtype = jnp.float32
) -> nnx.Module:
    """Builds the network that an official state dict belongs to, with its weights.

    Args:
        tensors: the state dict, as numpy arrays.
        dtype: type that the network is to compute in.

    Returns:
        The network; every hyper-parameter is inferred from the names and shapes.

    Raises:
        UserError: the names are no known network's; or a tensor is missing, left over
            or of another shape, and then all of these are listed.
    """
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): x for name, x in tensors.items()}
    config = infer_config({name: x.shape for name, x in tensors.items()})
    model = abstract_model(config, dtype=dtype)
    entries = _official_entries(model)
    _check(tensors, entries, _buffers(model), config)

    filled = []
    for name, entry in entries.items():
        value = entry.layout.from_official(np.asarray(tensors[name], np.float32))
        filled.append((entry.path, entry.variable.replace(jnp.asarray(value))))
    nnx.update(model, nnx.from_flat_state(filled))
    return model


def to_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """Writes a network as its official state dict: the way back, bit for bit.

    Args:
        model: a network of a kind that has an official PyTorch release.

    Returns:
        Every tensor of the official state dict, index buffers included.

    Raises:
        UserError: the network has a part that the official one lacks.
    """
    if isinstance(model, ucip.UCIP) and (model.skip or model.mixing != "codec"):
        raise UserError(
            f"ucip with skip {model.skip} and mixing {model.mixing!r} has no official "
            "state dict: the official network has no skip, and its mixing is 'codec'"
        )
    tensors = {
        name: np.ascontiguousarray(
            entry.layout.to_official(np.asarray(entry.variable[...]))
        )
        for name, entry in _official_entries(model).items()
    }
    return tensors | _buffers(model)


def official_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's official state dict, integer buffers left out.

    Args:
        model: the network; an abstract one will do.

    Returns:
        The shape of each tensor, under its official name.
    """
    return {
        name: entry.official_shape for name, entry in _official_entries(model).items()
    }


class _Entry(NamedTuple):
    path: tuple[str | int, ...]
    variable: nnx.Param
    layout: _Layout

    @property
    def official_shape(self) -> tuple[int, ...]:
        # A view that takes no memory: full networks are checked often.
        stand_in = np.broadcast_to(np.float32(0), self.variable.shape)
        return self.layout.to_official(stand_in).shape


def _official_entries(model: nnx.Module) -> dict[str, _Entry]:
    """Each parameter of a network, under its official name."""
    modules = dict(nnx.iter_modules(model))

    def official(path: tuple[str | int, ...]) -> str:
        owners = (modules[path[:i]] for i in range(len(path)))
        names = (
            _RENAMED.get(type(owner), {}).get(key, str(key))
            for owner, key in zip(owners, path, strict=True)
        )
        return ".".join(name for name in names if name)

    entries = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        leaf = path[-1]
        layout = _LAYOUTS.get(
            (type(modules[path[:-1]]), leaf), _Layout(leaf, _same, _same)
        )
        entries[f"{official(path[:-1])}.{layout.name}"] = _Entry(path, variable, layout)
    return entries


def _check(
    tensors: Mapping[str, np.ndarray],
    entries: Mapping[str, _Entry],
    buffers: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
) -> None:
    """Raises a UserError with a two-sided difference unless the state dict fits."""
    problems = [
        f"- {name} {entry.official_shape}: not in the state dict"
        for name, entry in entries.items()
        if name not in tensors
    ]
    for name, tensor in tensors.items():
        if name in buffers:
            if not np.array_equal(tensor, buffers[name]):
                problems.append(f"! {name}: other values than the official index")
        elif name not in entries:
            problems.append(f"+ {name} {tensor.shape}: not in the network")
        elif tensor.shape != entries[name].official_shape:
            expected = entries[name].official_shape
            problems.append(f"! {name} {tensor.shape}: {expected} in the network")
    if problems:
        raise UserError(
            f"the state dict does not fit the network inferred from it, {config}:\n"
            + "\n".join(sorted(problems))
        )


# --- what each network adds ----------------------------------------------------------


def infer_config(shapes: Shapes) -> dict[str, Any]:
    """Reads a network's name and hyper-parameters off its official state dict.

    Args:
        shapes: the shape of each tensor, under its official name.

    Returns:
        A config for `build_model` that leaves no hyper-parameter to a default.

    Raises:
        UserError: the names are no known network's, or not all of it is there.
    """
    for signature, infer in _INFER.items():
        if signature in shapes:
            try:
                return infer(shapes)
            except KeyError as missing:
                raise UserError(
                    f"the state dict has {signature!r} but no {missing}: it is not "
                    "complete"
                ) from missing
    some = ", ".join(repr(name) for name in list(shapes)[:5])
    raise UserError(
        f"no known network has tensors of these {len(shapes)} names: {some}...; known "
        f"networks have one of {', '.join(_INFER)}"
    )


def _promptcir_config(shapes: Shapes) -> dict[str, Any]:
    dim = shapes["patch_embed_input.proj.weight"][0]
    hybrid = [f"encoder_level{level}.residual_group" for level in (1, 2)]
    blocks = [f"{group}.blocks" for group in hybrid] + ["encoder_level3", "latent"]
    table = "attn.relative_position_bias_table"
    window = (isqrt(shapes[f"{blocks[0]}.0.{table}"][0]) + 1) // 2
    banks = [shapes[f"prompt{level}.prompt"] for level in (1, 2, 3)]
    return {
        "name": "promptcir",
        "dim": dim,
        "num_blocks": [_count(shapes, prefix) for prefix in blocks],
        "num_refinement_blocks": _count(shapes, "refinement"),
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
    }


def _count(shapes: Shapes, prefix: str) -> int:
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
    for digits in range(1, 16):
        expansion = ceil(low * 10**digits) / 10**digits
        if all(int(channels * expansion) == hidden for channels, hidden in widths):
            return expansion
    raise UserError(f"no single expansion gives the feed-forward widths {widths}")


def _ucip_config(shapes: Shapes) -> dict[str, Any]:
    width = shapes["patch_embed.proj.weight"][0]
    codecs, bases, _, _, prompt_dim = shapes["prompts.0.prompt"]
    depths = [_count(shapes, f"blocks.{i}") for i in range(_count(shapes, "blocks"))]
    return {
        "name": "ucip",
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
        if there == [new for d in depths for new in ucip.makes_offsets(d, every)]:
            return every
    raise UserError(f"no single interval gives the offset layers {there} of {depths}")


# A tensor that only this network has -> how to read its hyper-parameters.
_INFER: dict[str, Callable[[Shapes], dict[str, Any]]] = {
    "prompt1.basis_mlp.fc1.weight": _promptcir_config,
    "prompts.0.basis_mlp.fc1.weight": _ucip_config,
}


def _buffers(model: nnx.Module) -> dict[str, np.ndarray]:
    """The integer buffers of a network's official state dict."""
    if isinstance(model, promptcir.PromptCIR):
        size = model.window_size
        return {
            "relative_position_index_SA": relative_position_index(size),
            "relative_position_index_OCA": relative_position_index(size, size // 4),
        }
    return {}
