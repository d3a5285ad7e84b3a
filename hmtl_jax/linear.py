"""What can be read off frozen features: linear, nearest-neighbour and ridge probes, in JAX.

A split is a pair (features float [N, D], labels). All probes are deterministic: the same arrays
give the same metrics. They run on one device, in float32.

A logistic regression is scikit-learn's: it minimises C · (the sum of the examples' cross-entropy)
+ ½ |weights|², its intercept left out of the norm, on features of mean 0 and deviation 1 in
training; one weight a feature for two classes, one a class for more. It is found by L-BFGS (Nocedal
1980), along a path from the strongest penalty to the weakest, each from the one before.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmtl_jax.errors import UserError
from hmtl_jax.metrics.classification import classification_metrics
from hmtl_jax.metrics.multilabel import multilabel_metrics
from hmtl_jax.metrics.regression import regression_metrics

Split = tuple[np.ndarray, np.ndarray]

# Inverse strength of the classifier's L2 penalty, and strength of ridge's; ours.
CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
ALPHAS = (1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
# Labelled examples a class of the few-shot probe, and how often these are drawn; ours.
SHOTS = (1, 5, 10)
DRAWS = 10
# Of the votes of near neighbours, as in Wu 2018 (arXiv 1805.01978).
TEMPERATURE = 0.07
# Where L-BFGS ends: the largest slope of the mean loss, as in scikit-learn, or this many steps.
SLOPE, STEPS = 1e-6, 1000
ROWS = 1024  # that look for their neighbours at a time: all at once would need [N, M] numbers


class Line(NamedTuple):
    """A linear layer: float32 [D, K] and [K]."""

    weights: jax.Array
    bias: jax.Array


def logits(line: Line, x_nd: jax.Array) -> jax.Array:
    """float32 [N, classes]; of a single output those of no and yes."""
    found = x_nd @ line.weights + line.bias[None]
    return jnp.concatenate([0 * found, found], axis=1) if found.shape[1] == 1 else found


@functools.partial(jax.jit, static_argnames="classes")
def path(x_nd: jax.Array, labels_n: jax.Array, cs: jax.Array, *, classes: int) -> Line:
    """A logistic regression for each C of `cs` [P]: Line of [P, D, K] and [P, K].

    x_nd: float32, mean and deviation near 0 and 1. labels_n: int32 in [0, classes), each of which
    occurs.
    """
    mean, deviation = _spread(x_nd)
    own_nd = (x_nd - mean[None]) / deviation[None]

    def fit(start: Line, c: jax.Array) -> tuple[Line, Line]:
        def loss(line: Line) -> jax.Array:
            each = optax.softmax_cross_entropy_with_integer_labels(logits(line, own_nd), labels_n)
            return each.mean() + jnp.square(line.weights).sum() / (2 * c * len(x_nd))

        found = minimised(loss, start)
        weights = found.weights / deviation[:, None]
        return found, Line(weights, found.bias - mean @ weights)

    outputs = 1 if classes == 2 else classes
    start = Line(jnp.zeros((x_nd.shape[1], outputs)), jnp.zeros(outputs))
    return jax.lax.scan(fit, start, cs)[1]


@functools.partial(jax.jit, static_argnames="classes")
def _paths(x_knd: jax.Array, labels_kn: jax.Array, cs: jax.Array, *, classes: int) -> Line:
    """`path` of each of several sets of rows, compiled once for all encoders and labels."""
    one = functools.partial(path, classes=classes)
    return jax.vmap(one, in_axes=(0, 0, None))(x_knd, labels_kn, cs)


def minimised(loss: Callable[[Any], jax.Array], start: Any) -> Any:
    """The parameters at which a smooth convex loss is least, from `start`, by L-BFGS."""
    solver = optax.lbfgs()
    both = optax.value_and_grad_from_state(loss)

    def unfinished(carry):
        _, _, slope, step = carry
        return (slope > SLOPE) & (step < STEPS)

    def improved(carry):
        params, state, _, step = carry
        value, grad = both(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        slope = optax.tree.norm(grad, ord=jnp.inf)
        return optax.apply_updates(params, updates), state, slope, step + 1

    first = (start, solver.init(start), jnp.inf, 0)
    return jax.lax.while_loop(unfinished, improved, first)[0]


def probabilities(line: Line, x_nd: np.ndarray) -> np.ndarray:
    """Of each class, float64 [N, classes]."""
    return np.asarray(jax.nn.softmax(logits(line, jnp.asarray(x_nd))), np.float64)


def linear_probe(
    train: Split, validation: Split, test: Split, class_names: Sequence[str]
) -> dict[str, Any]:
    """Metrics on test of a logistic regression on standardised features.

    Its C is the one of CS that is most accurate on validation, the smallest of equals. With it the
    regression is fitted again, on train and validation together.

    Args:
      train, validation, test: labels int [N], -1 where missing: those rows are left out.
      class_names: of the C classes.

    Returns:
      what `classification_metrics` says, and `setting`: {"C": …, "validation_accuracy": …}, and of
      each C of the path its accuracy on validation, "path": {C: accuracy}.

    Features that are not finite, a split without labels, and training labels of fewer than two
    classes raise UserError.
    """
    fitted, held_out, tested = _centred(*(_labelled(*of) for of in (train, validation, test)))
    if len(np.unique(fitted[1])) < 2:
        raise UserError("A linear probe needs training labels of at least two classes.")
    present = np.unique(np.concatenate([fitted[1], held_out[1]]))
    found = np.zeros((len(tested[1]), len(class_names)))
    classifier, setting = _chosen(fitted, held_out)
    found[:, present] = classifier(tested[0])
    return classification_metrics(found, tested[1], class_names) | {"setting": setting}


def _chosen(
    fitted: Split, held_out: Split
) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """The regression of both splits, as features → probabilities; and how it was chosen."""
    known, ranks = np.unique(fitted[1], return_inverse=True)
    lines = _path(fitted[0], ranks, CS)
    scores = {}
    for at, c in enumerate(CS):
        guessed = known[probabilities(_at(lines, at), held_out[0]).argmax(1)]
        scores[c] = float(np.mean(guessed == held_out[1]))
    best = max(CS, key=lambda c: (scores[c], -c))
    both = [np.concatenate(parts) for parts in zip(fitted, held_out, strict=True)]
    ranks = np.unique(both[1], return_inverse=True)[1]
    line = _at(_path(both[0], ranks, CS[: CS.index(best) + 1]), -1)
    setting = {"C": best, "validation_accuracy": scores[best], "path": scores}
    return functools.partial(probabilities, line), setting


def _path(x_nd: np.ndarray, ranks: np.ndarray, cs: Sequence[float]) -> Line:
    return path(
        jnp.asarray(x_nd), jnp.asarray(ranks, jnp.int32), jnp.asarray(cs, jnp.float32),
        classes=int(ranks.max()) + 1,
    )  # fmt: skip


def _at(lines: Line, index: Any) -> Line:
    return jax.tree.map(lambda of: of[index], lines)


def linear_attributes(
    train: Split, validation: Split, test: Split, names: Sequence[str]
) -> dict[str, Any]:
    """Metrics on test of a logistic regression of each attribute, as `linear_probe` fits it.

    Args:
      train, validation, test: labels int [N, K] of 0 and 1, -1 where missing.
      names: of the K attributes.

    Returns:
      what `multilabel_metrics` says, and `setting`: name -> C. An attribute of which training has
      one value alone is predicted to have it.

    Features that are not finite, and an attribute that a split has no label of, raise UserError.
    """
    parts = _centred(train, validation, test)
    found, setting = np.zeros(test[1].shape), {}
    for column, name in enumerate(names):
        fitted, held_out = (_labelled(x, labels[:, column]) for x, labels in parts[:2])
        values = np.unique(fitted[1])
        if len(values) < 2:
            found[:, column] = values[0]
            continue
        classifier, chosen = _chosen(fitted, held_out)
        found[:, column], setting[name] = classifier(parts[2][0])[:, 1], chosen["C"]
    return multilabel_metrics(found, test[1], names) | {"setting": setting}


def knn(train: Split, test: Split, class_names: Sequence[str], k: int = 20) -> dict[str, Any]:
    """Metrics on test of the k nearest training examples by the cosine of their features.

    Each neighbour votes for its class with weight exp(cosine / 0.07) (Wu 2018); where train has
    fewer than k labelled examples, all vote. Arguments, returns and errors as in `linear_probe`,
    without `setting`.
    """
    if k < 1:
        raise UserError(f"knn needs at least one neighbour, not {k}.")
    (known, labels), (asked, truth) = (_labelled(*split) for split in (train, test))
    votes = _votes(
        jnp.asarray(_unit(known)), jnp.asarray(labels, jnp.int32), jnp.asarray(_unit(asked)),
        neighbours=min(k, len(labels)), classes=len(class_names),
    )  # fmt: skip
    votes = np.asarray(votes, np.float64)
    return classification_metrics(votes / votes.sum(axis=1, keepdims=True), truth, class_names)


@functools.partial(jax.jit, static_argnames=("neighbours", "classes"))
def _votes(known_md, labels_m, asked_nd, *, neighbours: int, classes: int) -> jax.Array:
    """float32 [N, classes]."""

    def of_one(asked_d: jax.Array) -> jax.Array:
        cosine, nearest = jax.lax.top_k(known_md @ asked_d, neighbours)
        votes = jnp.exp((cosine - 1) / TEMPERATURE)
        return jnp.zeros(classes).at[labels_m[nearest]].add(votes)

    return jax.lax.map(of_one, asked_nd, batch_size=ROWS)


def few_shot(
    train: Split,
    test: Split,
    class_names: Sequence[str],
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
) -> dict[str, dict[str, Any]]:
    """Accuracy on test of a logistic regression (C = 1) on a few training examples of each class.

    Arguments and errors as in `linear_probe`; shots: examples a class, all of a class that has
    fewer; draws: of these examples, the same for every encoder.

    Returns "1", "5", … → `accuracy` and `balanced_accuracy`, means over the draws, `deviation` of
    the accuracy over them, `interval`: [low, high], Student's 95 % of its mean, and `draws`.
    """
    from scipy import stats  # half a second to import

    (known, labels), (asked, truth) = _centred(*(_labelled(*split) for split in (train, test)))
    present, ranks = np.unique(labels, return_inverse=True)
    found = {}
    for count in shots:
        rng = np.random.default_rng(count)
        drawn = [_drawn(rng.permutation(len(ranks)), ranks, count) for _ in range(draws)]
        rows = np.stack(drawn)
        lines = _paths(
            jnp.asarray(known[rows]), jnp.asarray(ranks[rows], jnp.int32), jnp.ones(1),
            classes=len(present),
        )  # fmt: skip
        scores = []
        for draw in range(draws):
            guessed = np.zeros((len(truth), len(class_names)))
            guessed[:, present] = probabilities(_at(lines, (draw, 0)), asked)
            score = classification_metrics(guessed, truth, class_names)
            scores.append((score["accuracy"], score["balanced_accuracy"]))
        accuracy, balanced = np.mean(scores, axis=0).tolist()
        deviation = float(np.std([one for one, _ in scores], ddof=1))
        half = float(stats.t.ppf(0.975, draws - 1)) * deviation / draws**0.5
        found[str(count)] = {
            "accuracy": accuracy, "balanced_accuracy": balanced, "deviation": deviation,
            "interval": [accuracy - half, accuracy + half], "draws": draws,
        }  # fmt: skip
    return found


def _drawn(order: np.ndarray, ranks: np.ndarray, count: int) -> np.ndarray:
    """The first `count` rows of each class in an order."""
    return np.concatenate([order[ranks[order] == of][:count] for of in range(ranks.max() + 1)])


def ridge(
    train: Split, validation: Split, test: Split, names: Sequence[str], tolerance: float = 0.0
) -> dict[str, Any]:
    """Metrics on test of a ridge regression of each number on standardised features.

    The strength is the one of ALPHAS with the least squared error on validation, for each number by
    itself; with it the regression is fitted again, on train and validation together.

    Args:
      train, validation, test: labels float [N, K], NaN where missing.
      names: of the K numbers.
      tolerance: as in `regression_metrics`.

    Returns:
      what `regression_metrics` says, and `setting`: name -> alpha.

    Features that are not finite, and a number that a split has no label of, raise UserError.
    """
    parts = _centred(train, validation, test)
    predicted, setting = np.zeros(test[1].shape), {}
    for column, name in enumerate(names):
        fitted, held_out = (_labelled(x, labels[:, column]) for x, labels in parts[:2])
        lines = ridge_path(*map(jnp.asarray, fitted), jnp.asarray(ALPHAS))
        guessed = np.asarray(lines.weights @ held_out[0].T + lines.bias[:, None])
        errors = np.square(guessed - held_out[1]).mean(axis=1)
        setting[name] = alpha = ALPHAS[int(errors.argmin())]
        both = (jnp.concatenate(of) for of in zip(fitted, held_out, strict=True))
        line = _at(ridge_path(*both, jnp.asarray([alpha])), 0)
        predicted[:, column] = parts[2][0] @ np.asarray(line.weights) + float(line.bias)
    return regression_metrics(predicted, test[1], names, tolerance) | {"setting": setting}


@jax.jit
def ridge_path(x_nd: jax.Array, y_n: jax.Array, alphas: jax.Array) -> Line:
    """For each of `alphas` [P], the line with the least Σ (y - line(x))² + alpha |weights|².

    On features of mean 0 and deviation 1 among x_nd. Line of [P, D] and [P]. One singular value
    decomposition serves all.
    """
    mean, deviation = _spread(x_nd)
    left, size, right = jnp.linalg.svd((x_nd - mean[None]) / deviation[None], full_matrices=False)
    level = y_n.mean()
    shrunk = size[None] / (jnp.square(size)[None] + alphas[:, None])
    weights = (shrunk * (left.T @ (y_n - level))[None]) @ right / deviation[None]
    return Line(weights, level - weights @ mean)


def _spread(x_nd: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation [D]; a feature that never changes says nothing, and is left as it is."""
    deviation = x_nd.std(axis=0)
    return x_nd.mean(axis=0), jnp.where(deviation > 1e-5, deviation, 1.0)


def _labelled(features_nd: np.ndarray, labels_n: np.ndarray) -> Split:
    """The rows with a label."""
    labels_n = np.asarray(labels_n)
    known = labels_n >= 0 if labels_n.dtype.kind in "iu" else np.isfinite(labels_n)
    if not known.any():
        raise UserError("A split has no example with this label, so nothing can be probed.")
    return features_nd[known], labels_n[known]


def _centred(first: Split, *others: Split) -> list[Split]:
    """Splits with features of mean 0 and deviation 1 in the first, float32.

    In float64 until then: features may lie far from 0.
    """
    for features_nd, _ in (first, *others):
        if not np.isfinite(features_nd).all():
            raise UserError("Some features are not finite; the encoder's weights are broken.")
    mean, deviation = (
        first[0].mean(axis=0, dtype=np.float64),
        first[0].std(axis=0, dtype=np.float64),
    )
    deviation = np.where(deviation > 1e-6 * np.abs(mean), deviation, 1.0)
    return [
        (((x.astype(np.float64) - mean) / deviation).astype(np.float32), labels)
        for x, labels in (first, *others)
    ]


def _unit(features_nd: np.ndarray) -> np.ndarray:
    """float32 rows of length 1."""
    wide = features_nd.astype(np.float64)
    if not np.isfinite(wide).all():
        raise UserError("Some features are not finite; the encoder's weights are broken.")
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return (wide / np.maximum(length, np.finfo(np.float64).tiny)).astype(np.float32)
