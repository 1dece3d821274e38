"""Official PyTorch state dicts to our networks, exactly, and back.

Names: our attribute paths follow the official ones; `_RENAMED` lists where they do not,
by the class that holds the attribute. Layouts: `_LAYOUTS` says how a parameter of a
layer is stored officially. A network that is to be converted adds its rows there, and
to hyper_parameters.py how to read its config off the tensors' shapes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from cir_jax import weights
from cir_jax.differences import check_fits
from cir_jax.errors import UserError
from cir_jax.hyper_parameters import infer_config, network_name
from cir_jax.models import (
    abstract_model,
    guided,
    layers,
    perceive_ir,
    promptcir,
    promptir,
    restormer,
    ucip,
    ucip_blocks,
)
from cir_jax.ops.window_attention import relative_position_index
from cir_jax.state_dicts import without_wrappers

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
    promptir.PromptIR: {"patch_embed_input": "patch_embed.proj"},
    restormer.Restormer: {"patch_embed": "patch_embed.proj"},
    ucip.UCIP: {"patch_embed": "patch_embed.proj", "head": ""},
    ucip_blocks.PTMB: {"blocks": ""},
    ucip_blocks.SPADE: {"mlp_shared": "mlp_shared.0"},
    ucip.Reconstruction: {"conv_before_up": "conv_before_up.0"},
}
# Where one network's names of shared layers differ from the others'.
_RENAMED_IN: dict[type, dict[type, dict[str, str]]] = {
    perceive_ir.PerceiveIR: {
        layers.TransformerBlock: {
            "norm1": "norm1.body",
            "norm2": "norm2.body",
            "attn": "attention",
        },
        layers.MDTA: {"qkv_dwconv": "qkv_dw", "project_out": "project"},
        layers.GDFN: {"dwconv": "depthwise"},
        perceive_ir.ETB: {
            name: f"{name}.body"
            for name in ("norm1", "guidance_norm", "mdta_norm", "norm2")
        },
    },
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
_CONVOLUTION = _Layout(
    "weight", lambda x: x.transpose(3, 2, 0, 1), lambda x: x.transpose(2, 3, 1, 0)
)

_LAYOUTS: dict[tuple[type, str], _Layout] = {
    (layers.Linear, "kernel"): _Layout("weight", np.transpose, np.transpose),
    (layers.PointwiseConv, "kernel"): _POINTWISE,
    (ucip_blocks.AxialMixing, "kernel"): _POINTWISE,
    (nnx.Conv, "kernel"): _CONVOLUTION,
    (layers.Conv3x3, "kernel"): _CONVOLUTION,
    (layers.DepthwiseConv, "kernel"): _Layout(
        "weight",
        lambda x: x.transpose(2, 0, 1)[:, None],
        lambda x: x[:, 0].transpose(1, 2, 0),
    ),
    (layers.LayerNorm, "scale"): _Layout("weight", _same, _same),
    (promptcir.DPM, "prompt"): _Layout(
        "prompt", lambda x: x[None, ..., None, None], lambda x: x[0, ..., 0, 0]
    ),
    (promptir.PromptBlock, "prompt_param"): _Layout(
        "prompt_param",
        lambda x: x.transpose(0, 3, 1, 2)[None],
        lambda x: x[0].transpose(0, 2, 3, 1),
    ),
    (ucip_blocks.DPM, "prompt"): _Layout(
        "prompt", lambda x: x[:, :, None, None], lambda x: x[:, :, 0, 0]
    ),
}

# --- there and back ------------------------------------------------------------------


def from_official(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """An official state dict as a config of ours and parameters by our names.

    Args:
        tensors: the state dict, as numpy arrays of any floating types.
        config: of the network; by default inferred from the names and shapes.

    Returns:
        Every hyper-parameter, and each parameter under its dotted path, of the type
        that it came in and the very same bits.

    Raises:
        UserError: the names are no known network's; or a tensor is missing, left over,
            of another shape or kind or not finite, and then all of these are listed.
    """
    model, parameters = _converted(tensors, config)
    return model.config, parameters


def to_official(
    config: Mapping[str, Any], parameters: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Parameters by our names as an official state dict: the way back, bit for bit.

    Args:
        config: of the network, as in `build_model`.
        parameters: each under its dotted path.

    Returns:
        Every tensor of the official state dict, index buffers included.

    Raises:
        UserError: the network has a part that the official one lacks.
    """
    model = abstract_model(config)
    _check_official(model)
    entries = _official_entries(model)
    check_fits(
        parameters,
        {entry.dotted_path: entry.shape for entry in entries.values()},
        {},
        f"the parameters do not fit the network {config}",
    )
    return {
        name: np.ascontiguousarray(
            entry.layout.to_official(np.asarray(parameters[entry.dotted_path]))
        )
        for name, entry in entries.items()
    } | _buffers(model)


def _check_official(model: nnx.Module) -> None:
    """Refuses networks that the official code does not have."""
    if isinstance(model, ucip.UCIP) and (model.skip or model.mixing != "codec"):
        raise UserError(
            f"ucip with skip {model.skip} and mixing {model.mixing!r} has no official "
            "state dict: the official network has no skip, and its mixing is 'codec'"
        )
    if isinstance(model, promptcir.PromptCIR) and model.unshuffle != 1:
        raise UserError(
            f"promptcir with unshuffle {model.unshuffle} has no official state dict: "
            "the official network works at full resolution"
        )
    if isinstance(model, guided.Guided):
        raise UserError(
            f"{model.guided.config['name']} with Perceive-IR's guidance has no "
            "official state dict"
        )
    if isinstance(model, perceive_ir.PerceiveIR) and (
        model.semantics == "none" or model.design != "released"
    ):
        raise UserError(
            f"perceive_ir with semantics {model.semantics!r} and design "
            f"{model.design!r} has no official state dict: the released network has "
            "'dinov2' and 'released'"
        )


def from_state_dict(
    tensors: Mapping[str, np.ndarray], *, dtype: Dtype = jnp.float32
) -> nnx.Module:
    """Builds the network that an official state dict belongs to, with its weights.

    Args:
        tensors: the state dict, as numpy arrays; names may have a wrapper such as
            "module." in front.
        dtype: type that the network is to compute in; its parameters are float32.

    Returns:
        The network; every hyper-parameter is inferred from the names and shapes.

    Raises:
        UserError: see `from_official`.
    """
    model, parameters = _converted(without_wrappers(tensors)[0], dtype=dtype)
    return weights.filled(model, parameters, "the state dict")


def to_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """Writes a network as its official state dict, see `to_official`."""
    return to_official(model.config, weights.parameters(model))


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


def _converted(
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None = None,
    *,
    dtype: Dtype = jnp.float32,
) -> tuple[nnx.Module, dict[str, np.ndarray]]:
    """The abstract network of a state dict, and its parameters by our names."""
    model, doubt = _network_of(tensors, config, dtype)
    entries = _official_entries(model)
    check_fits(
        tensors,
        {name: entry.official_shape for name, entry in entries.items()},
        _buffers(model),
        f"{doubt}the state dict does not fit the network {model.config}",
    )
    return model, {
        entry.dotted_path: entry.layout.from_official(np.asarray(tensors[name]))
        for name, entry in entries.items()
    }


def _network_of(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None, dtype: Dtype
) -> tuple[nnx.Module, str]:
    """The abstract network of a state dict, and what is doubtful about it.

    Where its hyper-parameters cannot be told, the one that was released stands in, so
    that the differences from that can be listed.
    """
    if config is not None:
        return abstract_model(config, dtype=dtype), ""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    name = network_name(shapes)
    try:
        return abstract_model(infer_config(shapes), dtype=dtype), ""
    except UserError as error:
        return abstract_model({"name": name}, dtype=dtype), f"{error}; "


class _Entry(NamedTuple):
    path: tuple[str | int, ...]
    shape: tuple[int, ...]
    layout: _Layout

    @property
    def dotted_path(self) -> str:
        return ".".join(map(str, self.path))

    @property
    def official_shape(self) -> tuple[int, ...]:
        # A view that takes no memory: full networks are checked often.
        stand_in = np.broadcast_to(np.float32(0), self.shape)
        return self.layout.to_official(stand_in).shape


def _official_entries(model: nnx.Module) -> dict[str, _Entry]:
    """Each parameter of a network, under its official name."""
    modules = dict(nnx.iter_modules(model))
    renamed = _RENAMED | _RENAMED_IN.get(type(model), {})

    def official(path: tuple[str | int, ...]) -> str:
        owners = (modules[path[:i]] for i in range(len(path)))
        names = (
            renamed.get(type(owner), {}).get(key, str(key))
            for owner, key in zip(owners, path, strict=True)
        )
        return ".".join(name for name in names if name)

    entries = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        leaf = path[-1]
        layout = _LAYOUTS.get(
            (type(modules[path[:-1]]), leaf), _Layout(leaf, _same, _same)
        )
        entries[f"{official(path[:-1])}.{layout.name}"] = _Entry(
            path, variable.shape, layout
        )
    return entries


# --- what official state dicts hold beside the parameters ----------------------------


def _buffers(model: nnx.Module) -> dict[str, np.ndarray]:
    """The integer buffers of a network's official state dict."""
    if isinstance(model, promptcir.PromptCIR):
        size = model.window_size
        return {
            "relative_position_index_SA": relative_position_index(size),
            "relative_position_index_OCA": relative_position_index(size, size // 4),
        }
    return {}
