"""What a network computes, counted: the FLOPs of its products and convolutions."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def model_flops(function: Callable, *abstract_args: Any) -> int:
    """Counts the FLOPs of a function, without compiling or running it.

    Only matrix products and convolutions count, two FLOPs a multiply-add and nothing
    elementwise: no norm, softmax, activation, sampling or resizing. A convolution's
    taps in the padding count like all others. A scan counts as often as it is run, a
    while loop's body once, as nobody knows how often that is. Of the forms that
    `jax.lax.platform_dependent` chooses among it is the default one that counts, so
    that the number is the network's and not the device's; of the branches of other
    conditionals the one with the most.

    Args:
        function: what `jax.make_jaxpr` can trace.
        abstract_args: its arguments: arrays, or `jax.ShapeDtypeStruct`s for them.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*abstract_args).jaxpr)


def _of_jaxpr(jaxpr: core.Jaxpr) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return _multiply_adds(equation, math.prod(shape[axis] for axis in contracted))
    if name == "conv_general_dilated":
        # Of a grouped convolution, a kernel holds the inputs of its own group alone.
        _, inputs, *sides = params["dimension_numbers"].rhs_spec
        shape = equation.invars[1].aval.shape
        return _multiply_adds(
            equation, math.prod(shape[axis] for axis in (inputs, *sides))
        )
    inner = [_of_jaxpr(jaxpr) for jaxpr in _inside(params)]
    if name == "cond":
        platforms = params.get("branches_platforms")
        by_default = platforms is not None and platforms[-1] is None
        return inner[-1] if by_default else max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _multiply_adds(equation: core.JaxprEqn, each: int) -> int:
    """FLOPs of so many multiply-adds for every value that comes out."""
    return 2 * each * math.prod(equation.outvars[0].aval.shape)


def _inside(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """What an equation calls: functions, branches, the bodies of loops."""
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, core.ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, core.Jaxpr):
                yield each
