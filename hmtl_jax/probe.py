"""What a frozen encoder's features hold: linear, nearest-neighbour and ridge probes on the host.

A split is a pair (features float [N, D], labels). All probes are deterministic: the same arrays
give the same metrics.
"""

import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hmtl_jax import (
    build,
    cluster,
    errors,
    evaluate,
    files,
    infer,
    initial,
    sharding,
    state,
    trained,
)
from hmtl_jax.data import pipeline, sources
from hmtl_jax.data.subset import subset_indices
from hmtl_jax.metrics.classification import classification_metrics
from hmtl_jax.metrics.multilabel import multilabel_metrics
from hmtl_jax.metrics.names import first_headline
from hmtl_jax.metrics.regression import regression_metrics
from hmtl_jax.program import Program

Split = tuple[np.ndarray, np.ndarray]

# Inverse strength of the classifier's L2 penalty, and strength of ridge's; ours.
CS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
ALPHAS = (1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
# Labelled examples a class of the few-shot probe, and how often these are drawn; ours.
SHOTS = (1, 5, 10)
DRAWS = 10
# Of the votes of near neighbours, as in Wu 2018 (arXiv 1805.01978).
TEMPERATURE = 0.07


def run(config: ConfigDict, folder: pathlib.Path) -> None:
    """The job `probe`: what the frozen encoder of `init_from` knows, beside a random one.

    The encoder and the data are those of the run that `init_from` names, but for the keys of `data`
    that the recipe sets. Leaves probe-LABEL.json in `folder` for each label.
    """
    theirs, own_labels = probed(config)
    source = {
        part: sources.open_split(theirs.data.data_dir, theirs.data.name, theirs.data[part])
        for part in ("train", "validation", "test")
    }
    labels = [config.probe.label] if config.probe.label else own_labels
    check_labels(labels, source["train"])
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(config.batch_size, 1, mesh)
    with jax.set_mesh(mesh):
        splits = {
            name: {
                part: encoded(encode, variables, theirs, of, labels, mesh)
                for part, of in source.items()
            }
            for name, (encode, variables) in encoders(theirs, mesh).items()
        }
    if cluster.lead():
        for label in labels:
            report(config, label, splits, source["train"].class_names(label), folder)


def probed(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """The recipe of the encoder that is probed, on the data that are asked for; its tasks' labels.

    Another data set is read as `config.data` says, at the image size of the run. A safetensors file
    has no recipe: the encoder and the image size are then those that `config` names.
    """
    if not config.init_from:
        raise errors.UserError("The job probe needs init_from: a run's workdir or its checkpoint.")
    theirs = config.copy_and_resolve_references()
    labels: list[str] = []
    with theirs.unlocked():
        if not config.init_from.endswith(".safetensors"):
            kept = trained.recipe_of(files.local(config.init_from, "init_from"))
            theirs.model, theirs.data = kept.model, kept.data
            labels = _labels_of(kept)
        size, folder = theirs.data.image_size, theirs.data.data_dir
        if config.data.name:
            theirs.data = config.data.copy_and_resolve_references()
            theirs.data.image_size = size
        for part in ("validation", "test"):  # which a run without tasks leaves empty
            theirs.data[part] = theirs.data[part] or config.data[part]
        theirs.data.subset = config.data.subset
        theirs.data.data_dir = config.data.data_dir or folder
    return theirs, labels


def _labels_of(kept: ConfigDict) -> list[str]:
    """The labels of the tasks of a recipe, each once."""
    found = []
    for part in kept.tasks.values():
        found += [part.label] if "label" in part else part.labels
    return list(dict.fromkeys(found))


def check_labels(labels: Sequence[str], source: Any) -> None:
    """Raises UserError unless each label is in the data set and can be probed, and there is one."""
    if not labels or set(labels) - set(source.labels):
        raise errors.UserError(
            f"probe.label {', '.join(labels)!r} is not in the data set; it has "
            f"{', '.join(sorted(source.labels))}."
        )
    for label in labels:
        value = np.asarray(source[0][label])
        if value.dtype.kind != "f" and not source.class_names(label):
            raise errors.UserError(
                f"probe.label {label!r} is neither a class nor a number; probe one that is."
            )


def encoders(config: ConfigDict, mesh: Mesh) -> dict[str, tuple[Any, Any]]:
    """The encoder of `init_from`, and a random one of its shape: each compiled, and its variables.

    Compiled here, once for all splits.
    """
    alone = build.encoder_alone(config)
    drawn = state.init_variables(alone, mesh, config.seed)
    if config.init_from.endswith(".safetensors"):
        ours = {part: tree["encoder"] for part, tree in drawn.items()}
        found = initial.encoder(config, ours)
        program, variables = alone, {part: {"encoder": tree} for part, tree in found.items()}
    else:
        run = trained.load(files.local(config.init_from, "init_from"), mesh)
        program, variables = run.program, run.variables

    def compiled(of: Program) -> Any:
        return build.jitted(infer.encode_step, of, out_shardings=sharding.replicated(mesh))

    return {"trained": (compiled(program), variables), "random": (compiled(alone), drawn)}


def encoded(
    encode: Any, variables: Any, config: ConfigDict, source: Any, labels: Sequence[str], mesh: Mesh
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features and labels of a split under an encoder.

    Of the split for training `data.subset` is read, the same share of each class.
    """
    loading = build.loading(config, labels, config.batch_size)
    found, known = features(encode, variables, pipeline.eval_batches(source, **loading), mesh)
    if source.split == config.data.train and config.data.subset < 1:
        classes = known[labels[0]]
        if classes.ndim > 1 or classes.dtype.kind == "f":
            classes = np.zeros(len(classes), int)
        # The draw of a run that trains on the same share of this label.
        rows = subset_indices(classes, config.data.subset, 0)
        found, known = found[rows], {name: values[rows] for name, values in known.items()}
    return found, known


def report(
    config: ConfigDict,
    label: str,
    splits: Mapping[str, Mapping[str, Any]],
    names: Sequence[str] | None,
    folder: pathlib.Path,
) -> None:
    """Probes one label with both encoders, writes probe-LABEL.json, and says the result."""
    found: dict[str, Any] = {"label": label, "init_from": config.init_from}
    names = names or (label,)
    for encoder, of in splits.items():
        train, validation, test = (
            (of[part][0], of[part][1][label]) for part in ("train", "validation", "test")
        )
        if train[1].dtype.kind == "f":
            parts = (_in_columns(*split) for split in (train, validation, test))
            found[encoder] = {"linear": ridge(*parts, names=names)}
        elif train[1].ndim > 1:
            found[encoder] = {"linear": linear_attributes(train, validation, test, names)}
        else:
            found[encoder] = {
                "linear": linear_probe(train, validation, test, names),
                "neighbours": knn(train, test, names, config.probe.neighbours),
                "few_shot": few_shot(train, test, names),
            }
        found[encoder]["train_examples"] = len(train[1])
    path = folder / f"probe-{label}.json"
    files.write_json(path, found)
    for kind in ("linear", "neighbours"):
        if kind in found["trained"]:
            metric = first_headline(found["trained"][kind])
            ours, chance = (found[e][kind][metric] for e in ("trained", "random"))
            cluster.say(
                f"{label}, {kind}: test {metric} {ours:.4f}, with a random encoder {chance:.4f}; "
                f"see {path}"
            )
    for shots in found["trained"].get("few_shot", ()):
        ours, chance = (found[e]["few_shot"][shots] for e in ("trained", "random"))
        cluster.say(
            f"{label}, {shots} a class, {ours['draws']} draws: test accuracy "
            f"{ours['accuracy']:.4f} ± {ours['deviation']:.4f}, with a random encoder "
            f"{chance['accuracy']:.4f}"
        )


def _in_columns(features_nd: np.ndarray, labels: np.ndarray) -> Split:
    return features_nd, np.asarray(labels, np.float64).reshape(len(labels), -1)


def features(
    encode_step: Any, variables: Any, batches: Iterable, mesh: Any
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pooled features float32 [N, D] of a split, in its order, and its labels by name.

    encode_step: (variables, batch) -> {"predictions": {"pooled": [B, D]}, "labels": …}, as
    infer.encode_step jitted with replicated outputs.
    """
    found = evaluate.predictions(encode_step, variables, batches, mesh)
    return np.asarray(found["predictions"]["pooled"], np.float32), dict(found["labels"])


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
      what `classification_metrics` says, and `setting`: {"C": …, "validation_accuracy": …}.

    Features that are not finite, a split without labels, and training labels of fewer than two
    classes raise UserError.
    """
    fitted, held_out, tested = (_labelled(*split) for split in (train, validation, test))
    if len(np.unique(fitted[1])) < 2:
        raise errors.UserError("A linear probe needs training labels of at least two classes.")
    model, best, score = _chosen_logistic(fitted, held_out)
    probabilities = np.zeros((len(tested[1]), len(class_names)))
    probabilities[:, model.classes_] = model.predict_proba(tested[0])
    found = classification_metrics(probabilities, tested[1], class_names)
    return found | {"setting": {"C": best, "validation_accuracy": score}}


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
    probabilities, setting = np.zeros(test[1].shape), {}
    for column, name in enumerate(names):
        fitted, held_out = (_labelled(x, labels[:, column]) for x, labels in (train, validation))
        values = np.unique(fitted[1])
        if len(values) < 2:
            probabilities[:, column] = values[0]
            continue
        model, setting[name], _ = _chosen_logistic(fitted, held_out)
        probabilities[:, column] = model.predict_proba(_finite(test[0]))[:, 1]
    return multilabel_metrics(probabilities, test[1], names) | {"setting": setting}


def knn(train: Split, test: Split, class_names: Sequence[str], k: int = 20) -> dict[str, Any]:
    """Metrics on test of the k nearest training examples by the cosine of their features.

    Each neighbour votes for its class with weight exp(cosine / 0.07) (Wu 2018); where train has
    fewer than k labelled examples, all vote. Arguments, returns and errors as in `linear_probe`,
    without `setting`.
    """
    if k < 1:
        raise errors.UserError(f"knn needs at least one neighbour, not {k}.")
    (known, labels), (asked, truth) = (_labelled(*split) for split in (train, test))
    known, asked, k = _unit(known), _unit(asked), min(k, len(labels))
    votes = np.zeros((len(asked), len(class_names)))
    for start in range(0, len(asked), 1024):  # all at once would need [N, M] numbers
        rows = slice(start, start + 1024)
        cosine = asked[rows] @ known.T
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weight = np.exp((np.take_along_axis(cosine, nearest, axis=1) - 1) / TEMPERATURE)
        for column in range(k):
            places = (np.arange(start, start + len(weight)), labels[nearest[:, column]])
            np.add.at(votes, places, weight[:, column])
    return classification_metrics(votes / votes.sum(axis=1, keepdims=True), truth, class_names)


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

    (known, labels), (asked, truth) = (_labelled(*split) for split in (train, test))
    found = {}
    for count in shots:
        rng, scores = np.random.default_rng(count), []
        for _ in range(draws):
            order = rng.permutation(len(labels))
            rows = np.concatenate([order[labels[order] == of][:count] for of in np.unique(labels)])
            model = _logistic((known[rows], labels[rows]), 1.0)
            probabilities = np.zeros((len(truth), len(class_names)))
            probabilities[:, model.classes_] = model.predict_proba(asked)
            score = classification_metrics(probabilities, truth, class_names)
            scores.append((score["accuracy"], score["balanced_accuracy"]))
        accuracy, balanced = np.mean(scores, axis=0).tolist()
        deviation = float(np.std([one for one, _ in scores], ddof=1))
        half = float(stats.t.ppf(0.975, draws - 1)) * deviation / draws**0.5
        found[str(count)] = {
            "accuracy": accuracy, "balanced_accuracy": balanced, "deviation": deviation,
            "interval": [accuracy - half, accuracy + half], "draws": draws,
        }  # fmt: skip
    return found


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
    predicted, setting = np.zeros(test[1].shape), {}
    for column, name in enumerate(names):
        fitted, held_out = (_labelled(x, labels[:, column]) for x, labels in (train, validation))
        errors_of = {
            alpha: np.mean((_ridge(fitted, alpha).predict(held_out[0]) - held_out[1]) ** 2)
            for alpha in ALPHAS
        }
        setting[name] = min(ALPHAS, key=lambda alpha, found=errors_of: found[alpha])
        model = _ridge(_joined(fitted, held_out), setting[name])
        predicted[:, column] = model.predict(_finite(test[0]))
    return regression_metrics(predicted, test[1], names, tolerance) | {"setting": setting}


def _labelled(features_nd: np.ndarray, labels_n: np.ndarray) -> Split:
    """The rows with a label, features in float64: rounding then plays no part in the fit."""
    labels_n = np.asarray(labels_n)
    known = labels_n >= 0 if labels_n.dtype.kind in "iu" else np.isfinite(labels_n)
    if not known.any():
        raise errors.UserError("A split has no example with this label, so nothing can be probed.")
    return _finite(features_nd)[known], labels_n[known]


def _finite(features_nd):
    if not np.isfinite(features_nd).all():
        raise errors.UserError("Some features are not finite; the encoder's weights are broken.")
    return np.asarray(features_nd, np.float64)


def _joined(one: Split, other: Split) -> Split:
    return np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])


def _unit(features_nd):
    length = np.linalg.norm(features_nd, axis=1, keepdims=True)
    return features_nd / np.maximum(length, np.finfo(np.float64).tiny)


def _chosen_logistic(fitted: Split, held_out: Split) -> tuple[Any, float, float]:
    """The regression of both splits, with the C of CS most accurate on the second; C, accuracy."""
    scores = {
        c: float(np.mean(_logistic(fitted, c).predict(held_out[0]) == held_out[1])) for c in CS
    }
    best = max(CS, key=lambda c: (scores[c], -c))
    return _logistic(_joined(fitted, held_out), best), best, scores[best]


def _logistic(split: Split, c: float) -> Any:
    from sklearn import exceptions, linear_model, pipeline, preprocessing  # a second to import

    model = linear_model.LogisticRegression(C=c, max_iter=1000)
    with warnings.catch_warnings():
        # With the weakest penalty a separable set has its optimum far out; where the iterations
        # end is as good a classifier as any.
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        return pipeline.make_pipeline(preprocessing.StandardScaler(), model).fit(*split)


def _ridge(split: Split, alpha: float) -> Any:
    from sklearn import linear_model, pipeline, preprocessing

    return pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear_model.Ridge(alpha=alpha)
    ).fit(*split)
