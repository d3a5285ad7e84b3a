"""A new task, pretext or metric is one class and one line; nothing else must know it."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import build, figures, infer, limits, pretext, recipe, rules, state, step, tasks
from hmtl_jax.metrics import names
from hmtl_jax.pretext import skill
from hmtl_jax.state import evaluation_variables
from hmtl_jax.tasks.classification import Classification
from hmtl_jax.tasks.data import balanced_weights
from hmtl_jax.view import View
from tests import tiny


@dataclasses.dataclass(frozen=True)
class Ordinal:
    """A rank by squared error, with class weights that come from the data."""

    label: str
    sharpness: float = 1.0
    weights: tuple[float, ...] = ()

    mixes: ClassVar = False
    bears_warps: ClassVar = True
    distribution: ClassVar = False
    couples_rows: ClassVar = False
    num_outputs: ClassVar = 1
    metric_names: ClassVar = ("off_by",)
    outputs: ClassVar = ()
    answer: ClassVar = "a number, [b]"
    raw: ClassVar = "the number, [b, 1]"
    FILLED: ClassVar = ("weights",)
    SETTINGS: ClassVar = {}
    LIMITS: ClassVar = {"sharpness": limits.above(0)}

    def __post_init__(self):
        limits.check("tasks.ordinal.", vars(self), self.LIMITS)

    @classmethod
    def fitted(cls, settings, data):
        classes = len(data.classes(settings["label"]))
        return cls(**settings, weights=balanced_weights(data.column(settings["label"]), classes))

    @property
    def labels(self):
        return (self.label,)

    def target(self, batch):
        rank = batch[self.label]
        return rank.astype(jnp.float32), (rank >= 0).astype(jnp.float32)

    def flip(self, target, flipped):
        return target

    def loss(self, outputs, target, mask):
        weight = jnp.asarray(self.weights, jnp.float32)[target.astype(jnp.int32)]
        return weight * self.sharpness * jnp.square(outputs[:, 0].astype(jnp.float32) - target)

    def predict(self, outputs):
        return outputs[:, 0].astype(jnp.float32)

    def metrics(self, predictions, labels):
        known = labels[self.label] >= 0
        apart = np.abs(predictions[known] - labels[self.label][known])
        return {"n": int(known.sum()), "off_by": float(apart.mean())}


@dataclasses.dataclass(frozen=True)
class Dim:
    """Guess how far an image was darkened, judged by the features of a network of its own."""

    image_size: int
    file: str
    least: float = 0.5

    needs_average: ClassVar = False
    reads: ClassVar = "own"
    unlearned: ClassVar = "less darkness"
    FILLED: ClassVar = ("image_size",)
    LIMITS: ClassVar = {"least": limits.share()}

    @property
    def network(self):
        return "8x1x1/8", self.file

    @property
    def sizes_of_views(self):
        return (self.image_size,)

    def decoder_spec(self):
        return {"kind": "image", "size": self.image_size, "dim": 4, "depth": 1}

    def views(self, rngs_b, images_bhwc):
        draw = jax.vmap(lambda key: jax.random.uniform(key, minval=self.least))
        factor = draw(rngs_b)[:, None, None, None]
        return ((View(images_bhwc * factor), {"images": images_bhwc}),)

    def losses(self, output, target, features):
        found, wanted = features(output.astype(jnp.float32)), features(target["images"])
        return {"far": jnp.mean(jnp.square(found["pooled"] - wanted["pooled"]), axis=1)}

    def skill(self, output, target, mask_b):
        everywhere = jnp.ones_like(target["images"])
        return {"far": skill.of_values(output, target["images"], everywhere, mask_b)}

    def columns(self, images, view, target, output):
        return {"input": images, "dim": np.asarray(view.images)}


@pytest.fixture
def extended(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "ordinal", Ordinal)  # one line
    monkeypatch.setitem(pretext.PRETEXTS, "dim", Dim)  # one line
    monkeypatch.setitem(names.METRICS, "off_by", names.Metric(False, "ranks", headline=True))


def test_one_class_and_one_line_make_a_task_a_pretext_and_a_metric(extended, tmp_path):
    config = tiny.config(8)
    config.tasks = {"rank": recipe.task("ordinal", label="expression", sharpness=2.0)}
    config.pretexts = {"dim": recipe.pretext_task("dim", file="file.safetensors")}
    config.weighting.name, config.checkpoint.best = "fixed", "rank/off_by"
    rules.check(config)
    made = build.make_tasks(config, tiny.Source())
    assert made["rank"].weights == (1.0, 2.0, 4.0)  # by the counts of the data
    build.check_best(config, made, tiny.Source())
    training = build.training(config, made, 8)
    assert set(training.program.networks) == {"dim"}

    with jax.numpy_dtype_promotion("standard"):
        before = state.create(training)
        after, metrics = build.jitted(step.train_step, training)(before, tiny.batch())
    assert metrics["loss/rank"] > 0 and metrics["loss/dim"] > 0
    assert not np.array_equal(*(jax.tree.leaves(s.params["encoder"])[0] for s in (before, after)))

    variables = evaluation_variables(after)
    evaluated = infer.eval_step(training.program, variables, tiny.batch())
    found = made["rank"].metrics(
        np.asarray(evaluated["predictions"]["rank"]), jax.device_get(evaluated["labels"])
    )
    assert names.headlines({"rank/off_by": found["off_by"]}).startswith("rank/off_by ")
    assert names.score("rank/off_by", 2.0) == -2.0

    seen = jax.device_get(infer.pretext_step(training.program, variables, tiny.batch()))
    columns = training.program.pretexts["dim"].columns(
        seen["images"], seen["views"]["dim"], seen["targets"]["dim"], seen["outputs"]["dim"]
    )
    figures.reconstruction_grid(tmp_path / "dim.png", columns)
    assert (tmp_path / "dim.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ("expression/acuracy", "Unknown metric of expression.*Did you mean 'accuracy'"),
        ("expresion/accuracy", "Did you mean 'expression'"),
        ("expression/n", "Unknown metric of expression"),
        ("accuracy", "must be TASK/METRIC"),
    ],
)
def test_a_best_that_no_task_measures_is_refused_before_training(best, said):
    config = tiny.config(8)
    config.checkpoint.best = best
    made = build.make_tasks(config, tiny.Source())
    with pytest.raises(build.UserError, match=said):
        build.check_best(config, made, tiny.Source())


def test_a_best_that_the_split_does_not_define_is_refused_before_training():
    config = tiny.config(8)
    config.tasks = {"fake": recipe.task("binary", label="valence")}
    config.checkpoint.best = "fake/auc"

    class Source(tiny.Source):
        def __init__(self, *rows):
            super().__init__(rows)

        def __getitem__(self, index):
            return {"image": b"", "key": str(index), "valence": self.expression[index]}

    made = build.make_tasks(config, Source(0, 1))
    build.check_best(config, made, Source(0, 1))
    with pytest.raises(build.UserError, match="'fake/auc' is undefined on the split 'validation'"):
        build.check_best(config, made, Source(1, 1))
    with pytest.raises(build.UserError, match="on the split 'validation': No example has a label"):
        build.check_best(config, made, Source(-1, -1))


def test_every_task_names_the_metrics_that_it_measures():
    rng = np.random.default_rng(0)
    half = rng.permutation(np.arange(40) % 2).astype(np.int32)
    made = {
        "binary": (tasks.TASKS["binary"]("x"), rng.random(40), half),
        "classification": (Classification("x", ("a", "b")), np.full((40, 2), 0.5), half),
        "multilabel": (tasks.TASKS["multilabel"](("x",)), rng.random((40, 1)), half[:, None]),
        "pose": (tasks.TASKS["pose"](("x",)), rng.random((40, 3)), rng.random((40, 3))),
        "regression": (
            tasks.TASKS["regression"](("x",), tolerance=0.1),
            rng.random((40, 1)),
            rng.random((40, 1)),
        ),
    }
    assert set(made) == set(tasks.TASKS)
    for kind, (task, predictions, labels) in made.items():
        found = task.metrics(predictions, {"x": labels})
        measured = {name for name, value in found.items() if isinstance(value, float)}
        assert measured == set(task.metric_names), kind
        assert measured <= set(names.METRICS), kind
