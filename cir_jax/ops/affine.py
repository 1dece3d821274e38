"""A linear layer's parameters."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from cir_jax.ops.matmul import matmul


class Affine(NamedTuple):
    """The kernel and bias of a linear layer, or of a depthwise convolution.

    Attributes:
        kernel: output channels last.
        bias: of each output channel, or None.
    """

    kernel: Float[Array, "*inputs d"]
    bias: Float[Array, " d"] | None = None

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        """The layer's output."""
        return self.add_bias(matmul(x, self.kernel))

    def add_bias(self, y: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The bias put on what the kernel makes."""
        return y if self.bias is None else y + self.bias

    @property
    def matrix(self) -> Float[Array, "inputs d"]:
        """The layer as one kernel for inputs with a last channel of ones."""
        _, d = self.kernel.shape
        bias = jnp.zeros(d, self.kernel.dtype) if self.bias is None else self.bias
        return jnp.concatenate([self.kernel, bias[None]])

    def with_zeros(self, count: int) -> "Affine":
        """One layer with more outputs, which are zero."""
        return Affine(
            *(
                x if x is None else jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count)])
                for x in self
            )
        )

    def beside(self, other: "Affine") -> "Affine":
        """One layer with the outputs of both, the other's last; both have biases."""
        pairs = zip(self, other, strict=True)
        return Affine(*(jnp.concatenate(pair, axis=-1) for pair in pairs))

    def split(self, count: int) -> list["Affine"]:
        """Layers of the first outputs, the next, and so on, as many of each.

        Computing halves or thirds one by one avoids to split a wide map: a split copies
        the map, its gradient copies it once more, and on CPU both cost more than the
        products.
        """
        parts = (
            [None] * count if x is None else jnp.split(x, count, axis=-1) for x in self
        )
        return [Affine(*part) for part in zip(*parts, strict=True)]
