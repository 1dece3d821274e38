"""The training step: what a batch changes, and how that runs on the mesh."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from cir_jax import decoupling, objectives, optimizers, parallel
from cir_jax.experiment import FEATURES
from cir_jax.models import DTYPES, abstract_model
from cir_jax.models.layers import RestorationModel
from cir_jax.objectives import Batch, Objective
from cir_jax.optimizers import Turn
from cir_jax.rematerialise import rematerialise

Step = Callable[..., tuple["TrainState", dict[str, Array]]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything that a step changes.

    There is no random state: whatever is random is a function of the config's seed and
    the step, which is also the position in the data (global batches consumed).

    Attributes:
        step: steps done, an int32 scalar.
        params: the model's parameters, a nested dict of float32 arrays.
        opt_state: the state of each turn's rule.
        ema: exponential moving average of the parameters.
        memory: what the objective remembers between steps, see `Objective.memory`.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    memory: Any


def make_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    turns: Sequence[Turn],
    ema_decay: float,
    *,
    accumulate: int = 1,
    policy: str = "none",
    mesh: Mesh | None = None,
) -> Step:
    """The pure training step: (state, batch, frozen) to the next state and its metrics.

    `frozen` is the objective's. Each turn computes the batch anew, with what the turns
    before have changed. Parameters that do not move in it get no gradient, so that the
    compiler leaves out its making.

    Args:
        graphdef: of the model.
        objective: what is minimised, see objectives.py.
        turns: what moves, see `optimizers.turns`.
        ema_decay: of the average of the parameters.
        accumulate: passes that a batch is computed in, one after another; the gradient
            is their mean.
        policy: what is computed again, see rematerialise.py.
        mesh: on which the state is cut, if it is; the parameters are put together for
            the passes, and their gradient is cut again.
    """

    def place(params, cut: bool):
        if mesh is None or mesh.shape["fsdp"] == 1:
            return params
        whole = parallel.replicated(mesh)
        shardings = parallel.state_shardings(mesh, params) if cut else whole
        return jax.lax.with_sharding_constraint(params, shardings)

    def loss_of(params, batch: Batch, frozen, memory):
        model = nnx.merge(graphdef, params)
        rematerialise(model, policy)
        return objective(model, batch, frozen, memory)

    def passed(trainable: Sequence[str], params, batch: Batch, frozen, memory):
        (value, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            params, batch, frozen, memory
        )
        gradients = jax.tree.map(
            lambda trained, gradient: gradient if trained else jnp.zeros_like(gradient),
            optimizers.trained(gradients, trainable),
            gradients,
        )
        return {"loss": value} | metrics, place(gradients, cut=True)

    def all_passes(trainable: Sequence[str], params, batch: Batch, *others):
        one_pass = functools.partial(passed, trainable)
        if accumulate == 1:
            return one_pass(params, batch, *others)
        # Every pass takes images of every device, so that none of them moves.
        passes = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )
        first = jax.tree.map(lambda x: x[0], passes)
        shapes = jax.eval_shape(one_pass, params, first, *others)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(total, part):
            return jax.tree.map(jnp.add, total, one_pass(params, part, *others)), None

        total, _ = jax.lax.scan(add, zeros, passes)
        return jax.tree.map(lambda x: x / accumulate, total)

    def step(state: TrainState, batch: Batch, frozen: Any):
        params, moments = state.params, []
        model = nnx.merge(graphdef, place(params, cut=False))
        memory = objective.renewed(state.memory, state.step, model, frozen)
        for turn, before in zip(turns, state.opt_state, strict=True):
            metrics, gradients = all_passes(
                turn.trainable, place(params, cut=False), batch, frozen, memory
            )
            updates, after = turn.rule.update(gradients, before, params)
            params = optax.apply_updates(params, updates)
            moments.append(after)
        # A young average follows quickly, or it would remember the initialisation.
        age = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + age) / (10 + age))
        # In this form an average of what does not change is that, to the last bit.
        ema = jax.tree.map(
            lambda old, p: old + (1 - decay) * (p - old), state.ema, params
        )
        metrics |= {"gradient_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, tuple(moments), ema, memory), metrics

    return step


def jit_step(
    config: ConfigDict,
    graphdef: nnx.GraphDef,
    objective: Objective,
    turns: Sequence[Turn],
    mesh: Mesh,
    state: TrainState,
) -> Any:
    """The step as it runs: to be lowered for the mesh, the old state's memory reused.

    Args:
        config: the experiment.
        graphdef: of the model.
        objective: see objectives.py.
        turns: see `optimizers.turns`.
        mesh: see `parallel.make_mesh`.
        state: of arrays or their shapes.
    """
    step = make_step(
        graphdef,
        objective,
        turns,
        config.ema_decay,
        accumulate=config.accumulate,
        policy=config.rematerialise,
        mesh=mesh,
    )
    shardings = parallel.state_shardings(mesh, state)
    on_all = parallel.replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(
            shardings,
            parallel.batch_sharding(mesh, config.batch_size),
            on_all,
        ),
        out_shardings=(shardings, on_all),
        donate_argnums=0,
    )


def initial_state(
    params: Mapping[str, Any],
    turns: Sequence[Turn],
    mesh: Mesh,
    memory: Mapping[str, Any],
) -> TrainState:
    """The state before the first step, on the mesh, in memory of its own."""
    shardings = jax.tree.map(
        lambda leaf: leaf.sharding, abstract_state(params, turns, mesh, memory)
    )
    initial = functools.partial(_initial, turns)
    return jax.jit(initial, out_shardings=shardings)(params, memory)


def abstract_state(
    params: Mapping[str, Any],
    turns: Sequence[Turn],
    mesh: Mesh,
    memory: Mapping[str, Any],
) -> TrainState:
    """The shapes of the state, and where on the mesh they lie.

    Args:
        params: a nested dict of arrays or their shapes.
        turns: see `optimizers.turns`.
        mesh: see `parallel.make_mesh`.
        memory: the objective's, arrays or their shapes.
    """
    shapes = jax.eval_shape(functools.partial(_initial, turns), params, memory)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        shapes,
        parallel.state_shardings(mesh, shapes),
    )


def objective_of(config: ConfigDict, model: RestorationModel) -> Objective:
    """What an experiment minimises, without the networks that guide it.

    Args:
        config: the experiment.
        model: its network; an abstract one will do.

    Raises:
        UserError: see `objectives.from_config` and `decoupling.from_config`.
    """
    if config.model.name == FEATURES:
        return decoupling.from_config(config, model)
    return objectives.from_config(config)


def abstract_training(
    config: ConfigDict, mesh: Mesh
) -> tuple[RestorationModel, Objective, tuple[Turn, ...], TrainState]:
    """An experiment's model, objective, turns and state, without any array."""
    model = abstract_model(config.model, dtype=DTYPES[config.dtype])
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    turns = optimizers.turns(config)
    objective = objective_of(config, model)
    state = abstract_state(params, turns, mesh, objective.memory)
    return model, objective, turns, state


def _initial(
    turns: Sequence[Turn],
    params: Mapping[str, Any],
    memory: Mapping[str, Any],
) -> TrainState:
    average = jax.tree.map(jnp.copy, params)
    step = jnp.zeros((), jnp.int32)
    moments = tuple(turn.rule.init(params) for turn in turns)
    return TrainState(step, params, moments, average, memory)
