"""Perceive-IR's guidance on another network: CFE, SGM and PGM (2408.15994).

The paper claims that these do not depend on the backbone; how they are put on another
one is not in the released code. Here the maps that enter the latent level and each
level of the decoder are scaled and shifted by PGM, in place of the blocks of
Perceive-IR that look at both maps. Restormer, PromptIR and PromptCIR take a guide.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from cir_jax import models
from cir_jax.errors import UserError
from cir_jax.models.layers import RestorationModel
from cir_jax.models.perceive_ir import CFE, PGM, guidance_of, guiding_width
from cir_jax.models.pooling import Pool

VARIANTS: dict[str, dict[str, Any]] = {
    "restormer": {"network": {"name": "restormer"}},
    "promptcir": {"network": {"name": "promptcir"}},
}


class Guided(RestorationModel):
    """A network with CFE and PGM; the defaults are Perceive-IR's as released."""

    scale = 1
    pools = True

    def __init__(
        self,
        network: Mapping[str, Any] | ConfigDict,
        content_dim: int = 128,
        semantics: str = "dinov2",
        semantic_dim: int = 768,
        design: str = "released",
        *,
        rngs: nnx.Rngs,
        dtype: Dtype = jnp.float32,
    ):
        """Builds the network.

        Args:
            network: config of the one that is guided, see `build_model`.
            content_dim: length of CFE's vector, a multiple of 4.
            semantics: "dinov2" or "none", see perceive_ir.py.
            semantic_dim: length of a class token.
            design: of CFE and PGM, "released" or "paper".
            rngs: where the initial parameters come from.
            dtype: type to compute in.

        Raises:
            UserError: an unknown design or semantics, or a network that takes no guide.
        """
        self.guided = models.build_model(network, rngs, dtype=dtype)
        if not self.guided.guided_widths:
            raise UserError(
                f"{network['name']} takes no guide: guide restormer, promptir or "
                "promptcir"
            )
        self.multiple, self.channels = self.guided.multiple, self.guided.channels
        self.content_dim = content_dim
        self.semantics = semantics
        self.semantic_dim = guiding_width(semantics, semantic_dim)
        self.design = design
        options: Mapping[str, Any] = {"design": design, "rngs": rngs, "dtype": dtype}
        self.cfe = CFE(self.channels, content_dim, **options)
        self.pgm = nnx.List(
            PGM(self.semantic_dim + content_dim, width, **options)
            for width in self.guided.guided_widths
        )

    @property
    def network(self) -> dict[str, Any]:
        """The config of the network that is guided."""
        return self.guided.config

    def __call__(
        self,
        image: Float[Array, "b h w c"],
        semantics: Float[Array, "4 b d"] | None = None,
        pool: Pool | None = None,
        content: Float[Array, "b _"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Restores images; arguments, result and errors as in `PerceiveIR`."""
        content = self.cfe(image, pool) if content is None else content
        guidance = guidance_of(content, semantics, self.semantic_dim)
        return self.guided(
            image, lambda x, level: self.pgm[level - 1](x, guidance[level - 1])
        )


Model = Guided
