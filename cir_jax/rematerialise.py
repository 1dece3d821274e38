"""Less memory for more time: blocks whose inside is computed again for the gradient."""

import functools
from typing import Any

import jax
from flax import nnx

from cir_jax.models.layers import Block

POLICIES = {
    "none": None,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}
"""What is kept of a block's inside, by name: all, the results of matrix products (1x1
convolutions and linear layers), or nothing."""


def rematerialise(model: nnx.Module, policy: str) -> None:
    """Makes a model's blocks compute their inside again for the gradient, in place.

    Args:
        model: any model; what is a `layers.Block` in it is changed.
        policy: a name in `POLICIES`.
    """
    if POLICIES[policy] is None:
        return
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Block):
            module.__class__ = _twice(type(module), policy)


@functools.cache
def _twice(kind: type[Block], policy: str) -> type[Block]:
    """A kind of block whose call keeps its inputs, and what the policy lets it."""

    def call(self, *arguments: Any) -> Any:
        # What is no array, such as a pool of means, goes around the tracing.
        arrays = [a if isinstance(a, jax.Array) else None for a in arguments]

        def run(*traced):
            pairs = zip(traced, arguments, strict=True)
            return kind.__call__(self, *(a if t is None else t for t, a in pairs))

        return jax.checkpoint(run, policy=POLICIES[policy])(*arrays)

    return type(kind.__name__, (kind,), {"__call__": call})
