"""Optimizers and learning-rate schedules: what moves in a step, and by which rule."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from cir_jax.errors import UserError, unknown

ADVERSARY = "^discriminator/"
"""The pattern of the parameters that play against all others."""


class Turn(NamedTuple):
    """Parameters that move together, after those of the turns before in a step.

    Attributes:
        rule: how they move.
        trainable: which they are, as patterns of `trained`; all when empty. Others have
            no state in the rule.
    """

    rule: optax.GradientTransformation
    trainable: Sequence[str] = ()

    @classmethod
    def of(cls, rule: optax.GradientTransformation, trainable: Sequence[str]) -> "Turn":
        """The turn of some parameters, of a rule that would move all."""
        return cls(only(rule, trainable) if trainable else rule, trainable)


def learning_rate(config: ConfigDict, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, counted from 0.

    Linear warm-up over `config.warmup_steps`, from the first step on above 0, then by
    `config.decay`: "cosine" falls from `config.learning_rate` to
    `config.final_learning_rate` at `steps`, "step" multiplies by `config.decay_factor`
    at each of `config.decay_at`, "constant" stays.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.decay == "cosine":
        after = optax.cosine_decay_schedule(
            peak, max(1, steps - warmup), config.final_learning_rate / peak
        )
    elif config.decay == "step":
        after = optax.piecewise_constant_schedule(
            peak, {step - warmup: config.decay_factor for step in config.decay_at}
        )
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules(
        [optax.linear_schedule(peak / warmup, peak, warmup), after], [warmup]
    )


def trained(params: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
    """Which parameters are trained: a tree of bools like the parameters.

    Args:
        params: a nested dict.
        patterns: regular expressions; a parameter is trained if one is found in its
            path, such as "groups/0/prompts". All are trained when there is none.

    Raises:
        UserError: a pattern is found in no path, or is no regular expression.
    """
    flat = traverse_util.flatten_dict(params)
    paths = {keys: "/".join(map(str, keys)) for keys in flat}
    for pattern in patterns:
        try:
            found = any(re.search(pattern, path) for path in paths.values())
        except re.error as error:
            raise UserError(f"config.trainable: {pattern!r}: {error}") from error
        if not found:
            raise unknown("pattern in config.trainable", pattern, paths.values())
    return traverse_util.unflatten_dict(
        {
            keys: not patterns or any(re.search(p, path) for p in patterns)
            for keys, path in paths.items()
        }
    )


def only(
    rule: optax.GradientTransformation, trainable: Sequence[str]
) -> optax.GradientTransformation:
    """The rule for some parameters; the gradients of others come out as they are."""
    return optax.masked(rule, lambda params: trained(params, trainable))


def turns(config: ConfigDict) -> tuple[Turn, ...]:
    """Who moves in a training step of an experiment, one after the other.

    One turn, unless there is an adversary: `config.adversary.updates` "alternating"
    gives the discriminator its turn first, and then all others theirs against the new
    one; "simultaneous" moves both by the gradients at the same place.

    Raises:
        UserError: see `optimizer`; or some parameters alone are to be trained, and
            there is an adversary.
    """
    rule = optimizer(config.optimizer, config.steps)
    if config.adversary.updates == "none":
        return (Turn.of(rule, tuple(config.trainable)),)
    if config.trainable:
        raise UserError(
            f"config.trainable={tuple(config.trainable)} and an adversary: both "
            "players are trained whole, so set it to ()"
        )
    ratio = config.adversary.learning_rate / config.optimizer.learning_rate
    settings = ConfigDict(config.optimizer)
    settings.learning_rate *= ratio
    settings.final_learning_rate *= ratio
    adversary = optimizer(settings, config.steps)
    others = (f"^(?!{ADVERSARY[1:]})",)
    if config.adversary.updates == "alternating":
        return Turn.of(adversary, (ADVERSARY,)), Turn.of(rule, others)
    return (Turn(optax.chain(only(adversary, (ADVERSARY,)), only(rule, others))),)


def optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """AdamW, Adam or Lion after clipping by global norm, by the schedule above.

    Args:
        config: `config.optimizer` of the experiment. `clip_norm` 0 switches clipping
            off; `weight_decay` applies to parameters of two and more dimensions alone
            and is decoupled (Loshchilov and Hutter, 2019); "adam" has none.
        steps: the length of the training.

    Raises:
        UserError: Adam with a weight decay.
    """
    decay = {
        "weight_decay": config.weight_decay,
        "mask": lambda params: jax.tree.map(lambda p: jnp.ndim(p) >= 2, params),
    }
    if config.name == "adam" and config.weight_decay:
        raise UserError(
            f"config.optimizer.weight_decay={config.weight_decay} and adam, which has "
            "none: take adamw"
        )
    build = {"adamw": optax.adamw, "lion": optax.lion, "adam": optax.adam}[config.name]
    rule = build(
        learning_rate(config, steps),
        b1=config.b1,
        b2=config.b2,
        **({} if config.name == "adam" else decay),
    )
    if config.clip_norm:
        rule = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    return rule
