"""Every number of a recipe has a row that says what it may be; what it may not is refused."""

import math

import pytest
from ml_collections import ConfigDict

from hmtl_jax import limits, pretext, recipe, rules, tasks, weighting
from hmtl_jax.data import augment
from hmtl_jax.errors import UserError
from tests import tiny


def is_numeric(value):
    """A number, a yes or no, or a tuple of numbers."""
    if isinstance(value, tuple):
        return bool(value) and all(map(limits.is_number, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


NUMBERS = sorted(k for k, v in recipe.leaves(recipe.defaults()).items() if is_numeric(v))
PARTS = [
    *(("tasks", kind, cls) for kind, cls in tasks.TASKS.items()),
    *(("pretexts", kind, cls) for kind, cls in pretext.PRETEXTS.items()),
]


def row_of(key):
    section, _, name = key.rpartition(".")
    table = {"augment": augment.LIMITS, "weighting": weighting.LIMITS}.get(section)
    return rules.LIMITS.get(key) if table is None else table.get(name)


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_of_a_recipe_has_a_row_that_takes_its_default(key):
    assert row_of(key) is not None, f"{key} needs a row in a table of limits"
    holds, wanted = row_of(key)
    assert holds(recipe.leaves(recipe.defaults())[key]), wanted


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -7, -0.5, "x", None, (1, "x")])
def test_what_is_no_such_number_is_refused_by_its_name(key, value):
    config = tiny.config(8)
    with config.unlocked(), config.ignore_type():
        *path, name = key.split(".")
        (config[path[0]] if path else config)[name] = value
    with pytest.raises(UserError, match=rf"^{key.replace('.', '[.]')} is .*; give "):
        rules.check(config)


@pytest.mark.parametrize(("section", "kind", "cls"), PARTS)
def test_every_number_of_a_part_has_a_row(section, kind, cls):
    for field in recipe.dataclasses.fields(cls):
        if field.name not in cls.FILLED and is_numeric(field.default):
            assert field.name in cls.LIMITS, f"{kind}.{field.name} needs a row in LIMITS"
    assert set(cls.LIMITS) <= {field.name for field in recipe.dataclasses.fields(cls)}


@pytest.mark.parametrize(("section", "kind", "cls"), PARTS)
@pytest.mark.parametrize("value", [math.nan, -7, "x"])
def test_a_number_that_a_part_cannot_use_is_refused(section, kind, cls, value):
    needed = {"label": "expression"} if "label" in cls.__dataclass_fields__ else {}
    needed |= {"labels": ("valence",)} if kind in ("multilabel", "regression") else {}
    filled = {"classes": ("a", "b"), "image_size": 24, "patch": 4, "drops_tokens": True}
    needed |= {k: v for k, v in filled.items() if k in cls.FILLED}
    for name in cls.LIMITS:
        if limits.is_number(cls.__dataclass_fields__[name].default):
            if name == "centre" and value == -7:
                continue  # any number will do
            with pytest.raises(UserError, match=rf"^{section}\.{kind}\.{name} is .*; give "):
                cls(**needed, **{name: value})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"optim.learning_rate": 1.0}, r"sets 'optim\.learning_rate', a key that nothing reads"),
        ({"model.patch_size": 8}, r"'model\.patch_size', a key that nothing reads"),
        ({"weighting.lamda": 0.1}, r"'weighting\.lamda', .* Did you mean 'weighting\.lam'\?"),
        ({"optimizer": ConfigDict({"lr": 1.0})}, "'optimizer', a key that nothing reads"),
        ({"epoch": 3}, r"'epoch', .* Did you mean 'epochs'\?"),
        ({"tasks.expression.smoothing": 0.1}, r"^tasks\.expression: .* no setting 'smoothing'"),
        ({"pretexts.mae.mask": 0.1}, r"^pretexts\.mae: .* no setting 'mask'; .*'mask_ratio'"),
        ({"optim": 3}, "'optim' must be a section of keys"),
        ({"tasks.expression": "classification"}, r"tasks\.expression is no part of a recipe"),
    ],
)
def test_a_key_that_nothing_reads_is_refused(wrong, said):
    config = tiny.config(8)
    with config.unlocked(), config.ignore_type():
        for key, value in wrong.items():
            *path, name = key.split(".")
            at = config
            for part in path:
                at = at[part]
            at[name] = value
    with pytest.raises(UserError, match=said):
        rules.check(config)


@pytest.mark.parametrize("name", ["total", "clean"])
def test_names_that_metrics_and_views_have_are_refused(name):
    config = tiny.config(8)
    config.tasks[name] = config.tasks.expression
    with pytest.raises(UserError, match=f"not 'clean' nor 'total'.*rename {name}"):
        rules.check(config)


def test_a_probe_is_checked_too():
    config = recipe.defaults()
    config.job, config.model.dtype = "probe", "float16"
    with pytest.raises(UserError, match=r"model\.dtype is 'float16'"):
        rules.check(config)
    config.model.dtype = "float32"
    rules.check(config)
