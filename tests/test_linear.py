"""Probes find what features hold, choose their strength on validation, and are deterministic."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from hmtl_jax import errors, linear

NAMES = ("calm", "glad", "grim")


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's L-BFGS divides floats by integers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def split(n, seed, noise=0.5, scale=1.0):
    """Features of eight numbers, three of which point to the class; as float32 from an encoder."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n).astype(np.int32)
    features = rng.normal(size=(n, 8)) * noise
    features[:, :3] += 2 * np.eye(3)[labels]
    return (features * scale).astype(np.float32), labels


def splits(**settings):
    return tuple(split(n, seed, **settings) for seed, n in enumerate((120, 60, 80)))


def test_separable_features_are_separated():
    found = linear.linear_probe(*splits(noise=0.3), NAMES)
    assert found["accuracy"] > 0.98 and found["n"] == 80
    json.dumps(found, allow_nan=False)
    assert linear.knn(*splits(noise=0.3)[::2], NAMES, k=5)["accuracy"] > 0.98


def test_features_without_the_class_give_chance():
    shuffled = [(x, np.random.default_rng(9).permutation(y)) for x, y in splits()]
    assert linear.linear_probe(*shuffled, NAMES)["accuracy"] < 0.55


def scikit_learns(c, train, test):
    """Probabilities of scikit-learn's regression on standardised features, to its last digit."""
    scaler = StandardScaler().fit(train[0])
    model = LogisticRegression(C=c, max_iter=10_000, tol=1e-8)
    model.fit(scaler.transform(train[0]), train[1])
    return model.predict_proba(scaler.transform(test[0]))


def test_it_is_the_regression_of_both_splits_with_the_best_c_of_validation():
    train, validation, test = splits(noise=2.0, scale=50.0)
    found = linear.linear_probe(train, validation, test, NAMES)
    c = found["setting"]["C"]
    scores = [
        float(np.mean(scikit_learns(candidate, train, validation).argmax(1) == validation[1]))
        for candidate in linear.CS
    ]
    assert list(found["setting"]["path"].values()) == pytest.approx(scores)
    assert scores[linear.CS.index(c)] == max(scores) == found["setting"]["validation_accuracy"]
    both = [np.concatenate(parts) for parts in zip(train, validation, strict=True)]
    theirs = scikit_learns(c, both, test)
    assert found["accuracy"] == np.mean(theirs.argmax(1) == test[1])
    nll = -np.log(theirs[np.arange(len(test[1])), test[1]]).mean()
    assert found["nll"] == pytest.approx(nll, abs=1e-3)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("c", [1e-3, 1e-1, 10.0])
def test_every_regression_of_the_path_is_scikit_learns(classes, c):
    rng = np.random.default_rng(classes)
    mixed = rng.normal(size=(40, 40)) * np.exp(-np.arange(40) / 8)
    labels = rng.integers(0, classes, 600)
    features = rng.normal(size=(600, 40))
    features[:, :classes] += np.eye(classes)[labels]
    features = (features @ mixed + 3).astype(np.float32)
    train, test = (features[:400], labels[:400]), (features[400:], labels[400:])
    lines = linear.path(
        jnp.asarray(train[0]), jnp.asarray(train[1], jnp.int32), jnp.asarray([1e-4, c]),
        classes=classes,
    )  # fmt: skip
    found = linear.probabilities(jax.tree.map(lambda of: of[1], lines), test[0])
    assert lines.weights.shape == (2, 40, 1 if classes == 2 else classes)
    np.testing.assert_allclose(found, scikit_learns(c, train, test), atol=2e-3)


@pytest.mark.parametrize("alpha", linear.ALPHAS)
def test_every_ridge_of_the_path_is_scikit_learns(alpha):
    rng = np.random.default_rng(4)
    x = (rng.normal(size=(200, 30)) @ rng.normal(size=(30, 30)) + 5).astype(np.float32)
    y = (x @ rng.normal(size=30) + rng.normal(size=200)).astype(np.float32)
    lines = linear.ridge_path(jnp.asarray(x), jnp.asarray(y), jnp.asarray([alpha]))
    scaler = StandardScaler().fit(x)
    theirs = Ridge(alpha=alpha).fit(scaler.transform(x), y).predict(scaler.transform(x))
    found = np.asarray(lines.weights @ x.T + lines.bias[:, None])[0]
    np.testing.assert_allclose(found, theirs, atol=2e-3 * np.std(y))


def test_knn_equals_scikit_learns():
    train, _, test = splits(noise=1.5)
    unit = [
        x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (train[0], test[0])
    ]
    theirs = KNeighborsClassifier(
        7,
        metric="cosine",
        algorithm="brute",
        weights=lambda d: np.exp((1 - d) / linear.TEMPERATURE),
    ).fit(unit[0], train[1])  # fmt: skip
    found = linear.knn(train, test, NAMES, k=7)
    assert found["accuracy"] == theirs.score(unit[1], test[1])
    of_truth = theirs.predict_proba(unit[1])[np.arange(80), test[1]]
    eps = np.finfo(np.float64).eps
    assert found["nll"] == pytest.approx(-np.log(np.maximum(of_truth, eps)).mean(), rel=1e-4)


def test_missing_labels_and_absent_classes():
    train, validation, test = splits(noise=0.3)
    train[1][train[1] == 2] = -1
    validation[1][validation[1] == 2] = -1
    found = linear.linear_probe(train, validation, test, NAMES)
    assert found["per_class"]["grim"]["recall"] == 0
    assert found["per_class"]["calm"]["recall"] > 0.98
    assert linear.knn(train, test, NAMES)["per_class"]["grim"]["recall"] == 0


def test_few_examples_a_class_are_drawn_and_more_of_them_tell_more():
    train, test = split(300, 0, noise=1.5), split(400, 1, noise=1.5)
    found = linear.few_shot(train, test, NAMES, shots=(1, 20), draws=8)
    one, twenty = found["1"], found["20"]
    assert 0.34 < one["accuracy"] < twenty["accuracy"] - 0.05 and one["draws"] == 8
    assert twenty["deviation"] < one["deviation"]
    for of in found.values():
        low, high = of["interval"]
        # Student's, of eight draws: 2.365 deviations over √8.
        assert (high - low) / 2 == pytest.approx(2.365 * of["deviation"] / 8**0.5, rel=1e-3)
        assert (high + low) / 2 == pytest.approx(of["accuracy"])
    assert linear.few_shot(train, test, NAMES, shots=(1, 20), draws=8) == found
    everything = linear.few_shot(train, test, NAMES, shots=(1000,), draws=3)["1000"]
    assert everything["deviation"] == pytest.approx(0, abs=1e-3)  # all of each class, every time


def test_ridge_finds_linear_numbers_and_leaves_out_missing_ones():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(8, 2))
    made = []
    for n in (150, 60, 60):
        x = rng.normal(size=(n, 8)).astype(np.float32)
        y = (x @ mixing + 0.01 * rng.normal(size=(n, 2))).astype(np.float32)
        y[:20, 1] = np.nan
        made.append((x, y))
    found = linear.ridge(*made, ("valence", "arousal"))
    assert found["ccc"] > 0.999 and found["per_label"]["arousal"]["n"] == 40
    assert found["setting"] == {"valence": 0.1, "arousal": 0.1}
    noise = [(x, rng.permutation(y[:, :1])) for x, y in made]
    weak = linear.ridge(*noise, ("valence",))
    assert weak["setting"]["valence"] > 0.1 and abs(weak["ccc"]) < 0.3


def test_the_same_arrays_give_the_same_metrics():
    assert linear.linear_probe(*splits(), NAMES) == linear.linear_probe(*splits(), NAMES)
    assert linear.knn(*splits()[1:], NAMES) == linear.knn(*splits()[1:], NAMES)


def test_attributes_are_found_one_by_one():
    rng = np.random.default_rng(5)

    def split(n):
        features = rng.normal(size=(n, 6)).astype(np.float32)
        labels = np.stack([features[:, 0] > 0, features[:, 1] > 0.5, np.zeros(n)], axis=1)
        labels = labels.astype(np.int32)
        labels[::7, 0] = -1
        return features, labels

    found = linear.linear_attributes(split(300), split(100), split(200), ("a", "b", "never"))
    assert found["per_attribute"]["a"]["accuracy"] > 0.93
    assert found["per_attribute"]["b"]["accuracy"] > 0.93
    assert found["per_attribute"]["never"]["accuracy"] == 1.0
    assert set(found["setting"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x * np.nan, y), "not finite"),
        (lambda x, y: (x, np.full_like(y, -1)), "no example with this label"),
        (lambda x, y: (x, np.zeros_like(y)), "two classes"),
    ],
)
def test_bad_input_is_named(change, words):
    train, validation, test = splits()
    with pytest.raises(errors.UserError, match=words):
        linear.linear_probe(change(*train), validation, test, NAMES)
