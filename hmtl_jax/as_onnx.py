"""A forward pass as an ONNX model, by jax2onnx; with requirements-onnx.txt alone."""

import contextlib
import io
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.core import Tracer
from jax.extend import core

from hmtl_jax.errors import UserError

INSTALL = "launch/setup.sh requirements-onnx.txt"
OPSET = 21  # of 2024; what runs it is onnxruntime 1.18 and later


def check_installed() -> None:
    """Raises UserError unless what writes and runs ONNX is here."""
    try:
        import jax2onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX needs {error.name}, which is not installed; run {INSTALL} first."
        ) from None


def convert(
    predict: Callable[[jax.Array], Mapping[str, jax.Array]], shape: Sequence[int], dtype: Any
) -> bytes:
    """`predict` as an ONNX model with the input `images` and an output by each name.

    predict: images [B, *shape] of `dtype` → arrays [B, …] by name. Its weights are constants of it,
    and B is left open. Raises UserError where the model has something that jax2onnx doesn't know.
    """
    from jax2onnx import to_onnx

    (batch,) = export.symbolic_shape("B")
    images = jax.ShapeDtypeStruct((batch, *shape), dtype)
    # Not within to_onnx, which puts its own functions in the place of jnp's as it traces.
    program, answer = jax.make_jaxpr(predict, return_shape=True)(images)
    names = sorted(answer)  # the order of the leaves of a dict

    def plain(images: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(_evaluated(program, [images]))

    try:
        with _quiet():
            model = to_onnx(
                plain, inputs=[images], opset=OPSET, return_mode="proto",
                input_names=["images"], output_names=names,
            )  # fmt: skip
    except Exception as error:  # jax2onnx stumbles in many ways over what it doesn't know
        why = str(error).split("\n")[0]
        raise UserError(f"This model cannot be written as ONNX: {why}") from error
    # Shapes within are inferred by whoever reads it; some of those that jax2onnx tells are of
    # another order of axes.
    del model.graph.value_info[:]
    return model.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """jax2onnx tells of plugins for packages that are not here, and of untyped shapes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _evaluated(closed: Any, args: Sequence[Any]) -> list[Any]:
    """What a program makes of its inputs, its equations bound again as REWRITTEN has them.

    An empty array, which jax2onnx takes for one to be copied, stays a mere shape: a concatenation
    alone reads it. What hangs on no input is computed here: what is drawn, for one.
    """
    program, known = closed.jaxpr, {}
    known.update(zip(program.constvars, closed.consts, strict=True))
    known.update(zip(program.invars, args, strict=True))

    def value(of: Any) -> Any:
        return of.val if isinstance(of, core.Literal) else known[of]

    for equation in program.eqns:
        given = [value(of) for of in equation.invars]
        shapes = [of.aval for of in equation.outvars]
        if any(0 in of.shape for of in shapes):
            known.update(zip(equation.outvars, shapes, strict=True))
            continue
        rewritten = REWRITTEN.get(equation.primitive.name)
        now = jax.ensure_compile_time_eval if _fixed(equation, given) else contextlib.nullcontext
        with now():
            if rewritten:
                found = rewritten(equation.params, given)
            else:
                found = equation.primitive.bind(*given, **equation.params)
                found = found if equation.primitive.multiple_results else [found]
        known.update(zip(equation.outvars, found, strict=True))
    return [value(of) for of in program.outvars]


def _fixed(equation: Any, given: Sequence[Any]) -> bool:
    """Whether what an equation makes hangs neither on the pictures nor on how many there are."""
    sizes = [size for of in equation.outvars for size in of.aval.shape]
    counts = equation.primitive.name == "dim_as_value"
    traced = any(isinstance(of, Tracer) for of in given)
    return not (traced or counts) and all(isinstance(size, int) for size in sizes)


def _within(key: str) -> Callable[[Mapping, Sequence], list]:
    """An equation that stands for those of its parameter `key`."""
    return lambda params, given: _evaluated(params[key], given)


def _platform(params: Mapping[str, Any], _: Sequence) -> list[int]:
    chosen = ("cpu" in (of or ("cpu",)) for of in params["platforms"])
    return [list(chosen).index(True)]


def _branch(params: Mapping[str, Any], given: Sequence) -> list[Any]:
    if not isinstance(given[0], int):
        raise NotImplementedError("a branch that hangs on the picture")
    return _evaluated(params["branches"][given[0]], given[1:])


def _concatenated(params: Mapping[str, Any], given: Sequence) -> list[jax.Array]:
    full = [of for of in given if 0 not in of.shape]
    return [jax.lax.concatenate(full, params["dimension"])]


def _padded(params: Mapping[str, Any], given: Sequence) -> list[jax.Array]:
    """Padded by what stands beside it along an axis: jax2onnx pads no batch of open size."""
    array, value = given
    for axis, (before, after, within) in enumerate(params["padding_config"]):
        if within or before < 0 or after < 0:
            raise NotImplementedError("a padding that is negative or between elements")
        shape = [array.shape[:axis], array.shape[axis + 1 :]]
        sides = [
            [jnp.broadcast_to(value, (*shape[0], size, *shape[1]))] if size else []
            for size in (before, after)
        ]
        array = jnp.concatenate([*sides[0], array, *sides[1]], axis)
    return [array]


def _split(params: Mapping[str, Any], given: Sequence) -> list[jax.Array]:
    """jax2onnx splits no batch of open size."""
    axis, ends = params["axis"], itertools.accumulate(params["sizes"])
    return [
        jax.lax.slice_in_dim(given[0], end - size, end, axis=axis)
        for end, size in zip(ends, params["sizes"], strict=True)
    ]


def _left(_: Mapping, given: Sequence) -> list[jax.Array]:
    """ONNX shifts unsigned numbers alone."""
    number, bits = given
    return [number * number.dtype.type(1 << int(bits))]


def _right(_: Mapping, given: Sequence) -> list[jax.Array]:
    number, bits = given
    power = number.dtype.type(1 << int(bits))
    return [jax.lax.div(number - (number & (power - 1)), power)]


# By primitive, what is bound in its place: for a CPU, without wrappers, of what jax2onnx knows.
REWRITTEN: dict[str, Callable[[Mapping, Sequence], list]] = {
    "jit": _within("jaxpr"),
    "custom_vjp_call": _within("call_jaxpr"),
    "custom_jvp_call": _within("call_jaxpr"),
    "platform_index": _platform,
    "cond": _branch,
    "optimization_barrier": lambda _, given: list(given),
    "concatenate": _concatenated,
    "pad": _padded,
    "split": _split,
    "shift_left": _left,
    "shift_right_arithmetic": _right,
}


def answers(model: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    """What onnxruntime makes of images, on a CPU, by the outputs' names."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    found: Any = session.run(names, {"images": images})
    return dict(zip(names, found, strict=True))
