"""Less memory for more time: blocks whose inside is computed again for the gradient."""

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


class _Twice(nnx.Module):
    """A block that keeps its inputs alone, and whatever the policy lets it."""

    def __init__(self, block: Block, policy: Any):
        self.block = block
        self.policy = policy

    def __call__(self, *arguments: Any) -> Any:
        """The block's result."""
        # What is no array, such as a pool of means, goes around the tracing.
        arrays = [a if isinstance(a, jax.Array) else None for a in arguments]

        def run(*traced):
            pairs = zip(traced, arguments, strict=True)
            return self.block(*(a if t is None else t for t, a in pairs))

        return jax.checkpoint(run, policy=self.policy)(*arrays)


def rematerialise(model: nnx.Module, policy: str) -> None:
    """Makes a model's blocks compute their inside again, in place.

    The model can be called and differentiated as before; its state is no longer the
    one that weights files have.

    Args:
        model: any model; what is a `layers.Block` in it is changed.
        policy: a name in `POLICIES`.
    """
    if POLICIES[policy] is None:
        return
    modules = dict(nnx.iter_modules(model))
    for path, module in modules.items():
        if isinstance(module, Block):
            *above, last = path
            wrapped = _Twice(module, POLICIES[policy])
            parent = modules[tuple(above)]
            if isinstance(last, int):
                parent[last] = wrapped
            else:
                setattr(parent, last, wrapped)
