"""What training changes, as one tree of arrays; nothing else is carried from step to step."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hmtl_jax import optim, sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """seed uint32 [], of all that is drawn; step int32 []; params float32; batch_stats, ema empty
    where the recipe has none.

    `ema` holds the moving averages of `params` and `batch_stats` under these names, or the average
    that the optimizer keeps; `task_weights`
    is what a weighting learns or remembers; `frozen` holds the variables of the program's networks
    that are read and never trained.
    """

    seed: jax.Array
    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    task_weights: Any
    frozen: Any


def evaluation_variables(state: TrainState) -> dict[str, Any]:
    """What is evaluated and deployed, as Linen takes it: the moving average where one is kept."""
    return state.ema or {"params": state.params, "batch_stats": state.batch_stats}


def with_encoder(state: TrainState, found: Any) -> TrainState:
    """`state` with the encoder's variables replaced, in the moving average too.

    found: {"params": …, "batch_stats": …} of the encoder alone; what it lacks stays.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    given = {part: encoder for part, encoder in found.items() if encoder}

    def replaced(old: Any, part: str, copy: bool) -> Any:
        if part not in given:
            return old
        # A copy: the state is donated, and a buffer cannot be donated twice.
        new = jax.tree.map(jnp.copy, given[part]) if copy else given[part]
        return {**old, "encoder": new}

    new: dict[str, Any] = {part: replaced(old, part, copy=False) for part, old in variables.items()}
    if state.ema:
        new["ema"] = {part: replaced(old, part, copy=True) for part, old in state.ema.items()}
    return dataclasses.replace(state, **new)


def create(training: Any, seed: jax.Array | int = 0) -> TrainState:
    """The state at step 0 of a `step.Training`; a pure function of the seed, below 2^32."""
    program = training.program
    variables = program.init_model(jax.random.key(seed))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    opt_state = training.tx.init(params)
    averaging = training.ema or optim.averaged_params(opt_state, params) is not None
    # A copy: the state is donated, and a buffer cannot be donated twice.
    averages = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
    return TrainState(
        seed=jnp.asarray(seed, jnp.uint32),
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=averages if averaging else {},
        task_weights=training.weighting.init(),
        frozen=program.init_networks(jax.random.key(seed)),
    )


def abstract(training: Any, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, without its memory."""
    return sharding.placed(jax.eval_shape(lambda: create(training)), mesh)


def create_sharded(training: Any, shapes: TrainState, seed: int = 0) -> TrainState:
    """The state at step 0, each array made where it lives; `shapes` is what `abstract` returns.

    The seed is an argument of the compiled program: another one needs no other.
    """
    where = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    return jax.jit(functools.partial(create, training), out_shardings=where)(np.uint32(seed))


def init_variables(program: Any, mesh: Mesh, seed: int = 0) -> dict[str, Any]:
    """What a forward pass of the program reads, drawn from a seed, each array where it lives."""

    def draw(seed: jax.Array) -> dict[str, Any]:
        return program.init_model(jax.random.key(seed))

    given = np.uint32(seed)
    where = sharding.tree_shardings(jax.eval_shape(draw, given), mesh)
    return jax.jit(draw, out_shardings=where)(given)


def count(params: Any) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def nbytes(tree: Any) -> int:
    """Bytes of all arrays, over all devices, each counted once."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@jax.jit
def is_finite(tree: Any) -> jax.Array:
    """Whether every number of the tree is finite, bool []."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))
