"""Where arrays live: a mesh of `data` and `fsdp` devices, and a table of rules for parameters.

A batch is split over both axes. A parameter that a rule shards is split over `fsdp` along its
largest axis that divides, so that weights, their gradients, moments and moving average take
1 / fsdp of the memory on each device; everything else is on every device.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hmtl_jax.errors import UserError

BATCH = PartitionSpec(("data", "fsdp"))

# (regular expression of the path, rule), the first match counts. Paths of optimizer moments and of
# the moving average end in the path of their parameter, so one table serves the whole state.
RULES = (
    (r"/depthwise/kernel$", "replicate"),  # small, and split it would split the map's channels
    (r"/(kernel|positions_table)$", "fsdp"),
    (r".*", "replicate"),
)


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the given devices or of all; an axis of -1 takes what the other leaves."""
    count = len(jax.devices() if devices is None else devices)
    shape = {"data": data, "fsdp": fsdp}
    free = [axis for axis, size in shape.items() if size == -1]
    given = [size for size in shape.values() if size != -1]
    fixed = int(np.prod(given))
    if len(given) == 0 or min(given) < 1 or (count % fixed if free else count != fixed):
        raise UserError(
            f"mesh.data={data} and mesh.fsdp={fsdp} don't fit the {count} devices at hand; "
            "set one of them to -1 and the other to a divisor."
        )
    for axis in free:
        shape[axis] = count // fixed
    # Linen convolutions do not take Explicit axes.
    auto = (AxisType.Auto,) * 2
    return jax.make_mesh(tuple(shape.values()), tuple(shape), auto, devices=devices)


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises UserError unless every device gets equally many examples in every micro-batch."""
    if batch_size < 1 or accumulate < 1 or batch_size % (mesh.size * accumulate):
        unit = mesh.size * max(accumulate, 1)
        near = max(unit, round(batch_size / unit) * unit)
        raise UserError(
            f"batch_size {batch_size} does not divide over {mesh.size} devices × "
            f"optim.accumulate {accumulate}; choose a multiple of {unit}, such as {near}."
        )


def check_eval_batch(size: int, mesh: Mesh) -> None:
    """Raises UserError unless every device gets equally many examples of an evaluation batch."""
    if size % mesh.size:
        raise UserError(
            f"eval_batch_size {size} does not divide over {mesh.size} devices; choose a multiple "
            f"of {mesh.size}, or 0 for that of training."
        )


def divisible(size: int, mesh: Mesh) -> int:
    """The next size up that divides over the devices."""
    return -(-size // mesh.size) * mesh.size


def spec_for(path: str, shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """The partition of one array by the table."""
    rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
    axes = [axis for axis, size in enumerate(shape) if size % fsdp == 0 and size >= fsdp]
    if rule == "replicate" or fsdp == 1 or not axes:
        return PartitionSpec()
    largest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*(["fsdp" if axis == largest else None for axis in range(len(shape))]))


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A tree of NamedSharding for a tree of arrays or shapes."""

    def one(path, leaf):
        name = "/" + jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec_for(name, leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(one, tree)


def placed(shapes: Any, mesh: Mesh) -> Any:
    """A tree of shapes with the shardings that the table gives them, without their memory."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        tree_shardings(shapes, mesh),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device."""
    return NamedSharding(mesh, PartitionSpec())


def to_devices(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The process's rows of a batch → global arrays, split over all devices."""
    sharding = NamedSharding(mesh, BATCH)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def of_batch(shapes: Mapping[str, tuple], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """What `to_devices` makes of batches of these (shape, dtype), without their memory."""
    where = NamedSharding(mesh, BATCH)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
        for name, (shape, dtype) in shapes.items()
    }


def rows_to_devices(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """An array that all processes hold → a global one whose rows are split over all devices.

    Zeros are added behind it until they divide.
    """
    shape = (divisible(len(rows), mesh), *rows.shape[1:])

    def part(index: Any) -> np.ndarray:
        first, last, _ = index[0].indices(shape[0])
        mine = rows[first:last]
        lacking = last - first - len(mine)
        return np.pad(mine, [(0, lacking)] + [(0, 0)] * (rows.ndim - 1)) if lacking else mine

    return jax.make_array_from_callback(shape, NamedSharding(mesh, BATCH), part)


def taken(rows: jax.Array, index_b: jax.Array) -> jax.Array:
    """Inside jit: rows[index_b] of an array from `rows_to_devices`, split as a batch is.

    Each device gives what it has, and the sum over them, of which one alone is not zero, leaves a
    device with its part of the batch: no device ever holds the rows of others.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return rows[index_b]

    def part(mine: jax.Array, index_b: jax.Array) -> jax.Array:
        place_b = index_b - jax.lax.axis_index(BATCH[0]) * len(mine)
        here_b = (place_b >= 0) & (place_b < len(mine))
        found = mine[jnp.clip(place_b, 0, len(mine) - 1)]
        found = jnp.where(here_b.reshape(-1, *[1] * (found.ndim - 1)), found, 0)
        return jax.lax.psum_scatter(found, BATCH[0], scatter_dimension=0, tiled=True)

    specs = (BATCH, PartitionSpec())
    return jax.shard_map(part, in_specs=specs, out_specs=BATCH)(rows, index_b)


def summed_over_batch(function: Callable, *rows: jax.Array) -> jax.Array:
    """Inside jit: function(*rows), which is a sum over rows, made on each device of its own ones.

    So a loop in it needs the other devices once, after its end, and not at each turn.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or len(rows[0]) % mesh.size:
        return function(*rows)

    def part(*mine: jax.Array) -> jax.Array:
        return jax.lax.psum(function(*mine), BATCH[0])

    return jax.shard_map(part, in_specs=BATCH, out_specs=PartitionSpec())(*rows)


def over_batch(tree: Any) -> Any:
    """Inside jit: keeps the leading axis of every array split over all devices, if it divides.

    Every layer of an encoder says so of what it makes. Else the compiler carries the split of an
    `fsdp` weight over to its product, and the rows travel where the weight should.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rest = (leaf.shape[0] % mesh.size for leaf in jax.tree.leaves(tree))
    if mesh.empty or mesh.size == 1 or any(rest):
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, BATCH), tree)
