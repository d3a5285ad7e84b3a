"""Probes find what features hold, choose their strength on validation, and are deterministic."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from hmtl_jax import errors, probe, sharding

NAMES = ("calm", "glad", "grim")


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
    found = probe.linear_probe(*splits(noise=0.3), NAMES)
    assert found["accuracy"] > 0.98 and found["n"] == 80
    json.dumps(found, allow_nan=False)
    assert probe.knn(*splits(noise=0.3)[::2], NAMES, k=5)["accuracy"] > 0.98


def test_features_without_the_class_give_chance():
    shuffled = [(x, np.random.default_rng(9).permutation(y)) for x, y in splits()]
    assert probe.linear_probe(*shuffled, NAMES)["accuracy"] < 0.55


def test_it_is_the_regression_of_both_splits_with_the_best_c_of_validation():
    train, validation, test = splits(noise=2.0, scale=50.0)
    found = probe.linear_probe(train, validation, test, NAMES)
    c = found["setting"]["C"]
    scores = []
    for candidate in probe.CS:
        scaler = StandardScaler().fit(train[0])
        model = LogisticRegression(C=candidate, max_iter=1000)
        model.fit(scaler.transform(train[0]), train[1])
        scores.append(model.score(scaler.transform(validation[0]), validation[1]))
    assert scores[probe.CS.index(c)] == max(scores) == found["setting"]["validation_accuracy"]
    both = [np.concatenate(parts) for parts in zip(train, validation, strict=True)]
    scaler = StandardScaler().fit(both[0])
    model = LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(both[0]), both[1])
    assert found["accuracy"] == model.score(scaler.transform(test[0]), test[1])


def test_knn_equals_scikit_learns():
    train, _, test = splits(noise=1.5)
    unit = [
        x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (train[0], test[0])
    ]
    theirs = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / probe.TEMPERATURE)
    ).fit(unit[0], train[1])
    found = probe.knn(train, test, NAMES, k=7)
    assert found["accuracy"] == theirs.score(unit[1], test[1])
    of_truth = theirs.predict_proba(unit[1])[np.arange(80), test[1]]
    eps = np.finfo(np.float64).eps
    assert found["nll"] == pytest.approx(-np.log(np.maximum(of_truth, eps)).mean(), rel=1e-4)


def test_missing_labels_and_absent_classes():
    train, validation, test = splits(noise=0.3)
    train[1][train[1] == 2] = -1
    validation[1][validation[1] == 2] = -1
    found = probe.linear_probe(train, validation, test, NAMES)
    assert found["per_class"]["grim"]["recall"] == 0
    assert found["per_class"]["calm"]["recall"] > 0.98
    assert probe.knn(train, test, NAMES)["per_class"]["grim"]["recall"] == 0


def test_few_examples_a_class_are_drawn_and_more_of_them_tell_more():
    train, test = split(300, 0, noise=1.5), split(400, 1, noise=1.5)
    found = probe.few_shot(train, test, NAMES, shots=(1, 20), draws=8)
    one, twenty = found["1"], found["20"]
    assert 0.34 < one["accuracy"] < twenty["accuracy"] - 0.05 and one["draws"] == 8
    assert twenty["deviation"] < one["deviation"]
    for of in found.values():
        low, high = of["interval"]
        # Student's, of eight draws: 2.365 deviations over √8.
        assert (high - low) / 2 == pytest.approx(2.365 * of["deviation"] / 8**0.5, rel=1e-3)
        assert (high + low) / 2 == pytest.approx(of["accuracy"])
    assert probe.few_shot(train, test, NAMES, shots=(1, 20), draws=8) == found
    everything = probe.few_shot(train, test, NAMES, shots=(1000,), draws=3)["1000"]
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
    found = probe.ridge(*made, ("valence", "arousal"))
    assert found["ccc"] > 0.999 and found["per_label"]["arousal"]["n"] == 40
    assert found["setting"] == {"valence": 0.1, "arousal": 0.1}
    noise = [(x, rng.permutation(y[:, :1])) for x, y in made]
    weak = probe.ridge(*noise, ("valence",))
    assert weak["setting"]["valence"] > 0.1 and abs(weak["ccc"]) < 0.3


def test_the_same_arrays_give_the_same_metrics():
    assert probe.linear_probe(*splits(), NAMES) == probe.linear_probe(*splits(), NAMES)
    assert probe.knn(*splits()[1:], NAMES) == probe.knn(*splits()[1:], NAMES)


def test_attributes_are_found_one_by_one():
    rng = np.random.default_rng(5)

    def split(n):
        features = rng.normal(size=(n, 6)).astype(np.float32)
        labels = np.stack([features[:, 0] > 0, features[:, 1] > 0.5, np.zeros(n)], axis=1)
        labels = labels.astype(np.int32)
        labels[::7, 0] = -1
        return features, labels

    found = probe.linear_attributes(split(300), split(100), split(200), ("a", "b", "never"))
    assert found["per_attribute"]["a"]["accuracy"] > 0.93
    assert found["per_attribute"]["b"]["accuracy"] > 0.93
    assert found["per_attribute"]["never"]["accuracy"] == 1.0
    assert set(found["setting"]) == {"a", "b"}


def test_features_are_in_the_order_of_the_split_without_padding():
    mesh = sharding.make_mesh(2, 1, jax.devices()[:2])

    @jax.jit
    def encode(state, batch):
        pooled = state * batch["image"].astype(jnp.float32).mean((1, 2))
        labels = {key: value for key, value in batch.items() if key != "image"}
        return {"predictions": {"pooled": pooled}, "labels": labels}

    def batch(indices):
        index = np.array(indices, np.int32)
        image = np.broadcast_to(index[:, None, None, None], (4, 2, 2, 3)).astype(np.uint8)
        return {
            "image": image,
            "index": index,
            "valid": index >= 0,
            "age": (index + 0.5).astype(np.float32),
        }

    found, labels = probe.features(encode, 2.0, [batch([4, 5, 1, -1]), batch([0, 3, 2, -1])], mesh)
    np.testing.assert_array_equal(found, np.arange(6, dtype=np.float32)[:, None] * [[2.0, 2, 2]])
    np.testing.assert_array_equal(labels["age"], np.arange(6) + 0.5)
    assert found.dtype == np.float32


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
        probe.linear_probe(change(*train), validation, test, NAMES)
