"""From a recipe, and what its data say, to the program that runs it."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hmtl_jax import limits, optim, pretext, recipe, sharding, step, tasks, weighting
from hmtl_jax.data import augment, order, pipeline
from hmtl_jax.errors import UserError, lookup
from hmtl_jax.models import decoders, encoders, heads, hybrid, vit
from hmtl_jax.program import Program
from hmtl_jax.recipe import steps_per_epoch, total_steps
from hmtl_jax.step import Training

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The training split, as tasks ask of it (see tasks/data.py).

    rows: the records whose labels they see.
    """

    source: Any
    rows: np.ndarray

    def classes(self, label: str) -> tuple[str, ...]:
        """Names of a label's classes; empty where it is no class label."""
        return tuple(self.source.class_names(label) or ())

    def has(self, label: str) -> bool:
        """Whether the examples have this label."""
        return label in self.source.labels

    def entries(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Names of the columns that these labels make side by side."""
        return tuple(pipeline.entry_names(self.source, labels))

    def column(self, label: str) -> np.ndarray:
        """One label of all examples that tasks see [N, …]."""
        return pipeline.column(self.source, label)[self.rows]


def make_tasks(config: ConfigDict, source: Any) -> dict[str, Any]:
    """The recipe's tasks for a training split: each takes from it what it needs."""
    made, stratify = {}, recipe.stratified_by(config) or None
    rows = pipeline.choose(source, config.data.subset, config.data.labelled, stratify)
    data = TrainingData(source, rows.numbers[rows.labelled])
    for name, part in config.tasks.items():
        cls, settings = lookup(tasks.TASKS, part.kind, "task"), _settings(part)
        for key in ("label", "labels"):
            read = settings.get(key, ())
            _check_labels(name, key, (read,) if isinstance(read, str) else read, source)
        with _named("tasks", name, part.kind):
            # Those that the task translates, such as "balanced", are checked when they are numbers.
            own = {key: row for key, row in cls.LIMITS.items() if key not in cls.SETTINGS}
            limits.check(f"tasks.{name}.", settings, own)
            made[name] = cls.fitted(settings, data)
            _check_labels(name, key, made[name].labels, source)
            _check_allowed(config, made[name])
            if config.data.labelled < 1:
                _check_classes(made[name], data)
    return made


def drawn(config: ConfigDict, source: Any) -> dict[str, int]:
    """How often an epoch has each class of the label that `data.sampling` draws by."""
    label = recipe.stratified_by(config)
    rows = pipeline.choose(source, config.data.subset, config.data.labelled, label)
    classes = pipeline.column(source, label)[rows.numbers[rows.labelled]]
    wanted = order.quotas(classes, config.data.sampling)
    called = dict(enumerate(source.class_names(label) or ())) | {-1: "of no class"}
    pairs = zip(np.unique(classes).tolist(), wanted.tolist(), strict=True)
    return {called.get(value, str(value)): count for value, count in pairs}


def _check_classes(task: Any, data: TrainingData) -> None:
    """Raises UserError where a class that occurs has lost its last label."""
    for label in filter(data.classes, task.labels):
        whole = pipeline.column(data.source, label)
        if whole.ndim != 1:
            continue
        seen = whole[data.rows]
        lost = sorted(set(whole[whole >= 0]) - set(seen[seen >= 0]))
        if lost:
            name = data.classes(label)[lost[0]]
            raise UserError(
                f"data.labelled leaves no label of {label} {name!r}; raise it, or set "
                f"data.stratify to {label!r}."
            )


def _check_labels(name: str, key: str, read: Sequence[str], source: Any) -> None:
    for label in read:
        if label not in source.labels:
            raise UserError(
                f"tasks.{name}.{key} {label!r} is not in the data set; it has "
                f"{', '.join(sorted(source.labels))}."
            )


def labels_of(made_tasks: Mapping) -> list[str]:
    """What the tasks read of a batch, each label once, in the order of the names."""
    return sorted({label for task in made_tasks.values() for label in task.labels})


def measured(task: Any) -> tuple[str, ...]:
    """The labels that a task's metrics read: all that it reads, but for the shares of votes."""
    return getattr(task, "measured", task.labels)


def _check_allowed(config: ConfigDict, task: Any) -> None:
    """Raises UserError where the recipe does what falsifies the task's labels or its loss."""
    if make_augment(config).slants and not task.bears_warps:
        raise UserError(
            "turned and sheared pictures falsify its label; set augment.rotation and augment.shear "
            "to 0, and augment.randaugment_geometric to False."
        )
    if config.optim.accumulate > 1 and task.couples_rows:
        raise UserError(
            "its loss is taken over the whole batch, which no micro-batch has; set "
            "optim.accumulate to 1, or choose another objective."
        )
    if (config.augment.mixup or config.augment.cutmix) and not task.mixes:
        raise UserError(
            "the mean of two of its labels means nothing; set augment.mixup and augment.cutmix to "
            "0."
        )


def _settings(part: ConfigDict) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in recipe.PART}


@contextlib.contextmanager
def _named(section: str, name: str, kind: str) -> Iterator[None]:
    """Refusals of a part, which knows its kind alone, get the name that the recipe gave it."""
    try:
        yield
    except UserError as error:
        said = str(error).replace(f"{section}.{kind}", f"{section}.{name}")
        said = said.removeprefix(f"{kind}: ")
        known = f"{section}.{name}" in said
        raise UserError(said if known else f"{section}.{name}: {said}") from None


def encoder_of(config: ConfigDict) -> encoders.Encoder:
    """What is known of the recipe's encoder; raises UserError if it does not fit the images."""
    encoder = encoders.parse(config.model.encoder, config.model.stem)
    encoder.check(config.data.image_size)
    return encoder


def make_pretexts(config: ConfigDict) -> dict[str, Any]:
    """The recipe's pretexts for its encoder and image size."""
    made, image_size, encoder = {}, config.data.image_size, encoder_of(config)
    given = {
        "image_size": image_size,
        "patch": encoder.patch,
        "drops_tokens": encoder.drops_tokens,
    }
    for name, part in config.pretexts.items():
        cls = lookup(pretext.PRETEXTS, part.kind, "pretext")
        with _named("pretexts", name, part.kind):
            made[name] = cls(**_settings(part), **{key: given[key] for key in cls.FILLED})
        if made[name].needs_average and not config.optim.ema:
            raise UserError(
                f"pretexts.{name} compares features under the moving average of the encoder; set "
                "optim.ema, such as 0.999, or a network of its own (perceptual_encoder), or its "
                "perceptual weight to 0."
            )
    return made


def make_networks(config: ConfigDict, made_pretexts: Mapping) -> dict[str, Any]:
    """By pretext, the encoder with imported weights in which it compares features."""
    made = {}
    with (settings := config.model.copy_and_resolve_references()).unlocked():
        settings.update(drop_path=0.0, pool="cls", positions="learned")
    for name, one in made_pretexts.items():
        if one.network:
            with _named("pretexts", f"{name}.perceptual_encoder", "model.encoder"):
                encoder = encoders.parse(one.network[0])
                encoder.check(config.data.image_size)
            made[name] = encoder.make(settings, DTYPES[config.model.dtype])
    return made


def make_model(config: ConfigDict, made_tasks: Mapping, made_pretexts: Mapping) -> hybrid.Hybrid:
    """The encoder of the recipe with a head a task and a decoder a pretext."""
    encoder, model = encoder_of(config), config.model
    _check_sizes(config, made_pretexts)
    dtype = DTYPES[model.dtype]
    encoded = [name for name, one in made_pretexts.items() if one.reads != "clean"]
    read = tuple(name for name in encoded if config.pretexts[name].in_stream)
    if made_pretexts and not encoded and (model.fusion or config.stream != "clean"):
        raise UserError(
            f"pretexts.{next(iter(made_pretexts))} has no view of its own that tasks could read; "
            "set stream to 'clean' and model.fusion to ''."
        )
    reads = {
        "clean": ("clean",),
        "one_stream": read,
        "siamese": ("clean", *read),
    }

    def head(task: Any) -> Any:
        if model.fusion:
            return heads.FusionHead(task.num_outputs, model.fusion, model.head_dropout, dtype)
        return heads.LinearHead(task.num_outputs, model.head_dropout, dtype)

    comparing = tuple(name for name, one in made_pretexts.items() if one.reads == "heads")
    comparable = [name for name, task in made_tasks.items() if task.distribution]
    if comparing and not comparable:
        raise UserError(
            f"pretexts.{comparing[0]} compares what a classification task says of two views, and "
            "the recipe has none; add one, or take the pretext out."
        )
    specs = {name: one.decoder_spec() for name, one in made_pretexts.items()}
    return hybrid.Hybrid(
        encoder=encoder.make(model, dtype),
        heads={name: head(task) for name, task in made_tasks.items()},
        decoders={
            name: decoders.build(spec, dtype, model.positions, model.attention)
            for name, spec in specs.items()
            if spec is not None
        },
        on_clean=tuple(name for name, one in made_pretexts.items() if one.reads == "clean"),
        compared=dict.fromkeys(comparable, comparing),
        reads=dict.fromkeys(made_tasks, reads[config.stream]),
        fuse=encoded[0] if model.fusion else "",
    )


def _check_sizes(config: ConfigDict, made_pretexts: Mapping) -> None:
    """A table of learned positions has one size; fixed ones are computed for any."""
    for name, made in made_pretexts.items():
        others = set(made.sizes_of_views) - {config.data.image_size}
        learned = config.model.positions == "learned" and vit.is_vit(config.model.encoder)
        if others and learned:
            raise UserError(
                f"pretexts.{name}.sizes holds {sorted(others)}, which learned positions do not "
                "fit; set model.positions to 'sincos' or 'centred'."
            )


def make_weighting(config: ConfigDict, steps: int, per_epoch: int) -> weighting.Fixed:
    """The weighting of the recipe's losses, over a run of `steps`."""

    def schedules(parts: Mapping) -> dict:
        return {
            name: weighting.schedule(
                name, part.weight, part.weight_schedule, part.final_weight, steps
            )
            for name, part in parts.items()
        }

    make = lookup(weighting.WEIGHTINGS, config.weighting.name, "weighting")
    made = make(schedules(config.tasks), schedules(config.pretexts), config.weighting, per_epoch)
    if not any(float(weight(at)) for weight in made.base.values() for at in (0, steps)):
        raise UserError(f"The weights of {', '.join(made.base)} are all 0; set one above 0.")
    return made


def program(config: ConfigDict, made_tasks: Mapping) -> Program:
    """What a forward pass of the recipe needs, with tasks that are made already."""
    made_pretexts = make_pretexts(config)
    return Program(
        model=make_model(config, made_tasks, made_pretexts),
        tasks=made_tasks,
        pretexts=made_pretexts,
        image_size=config.data.image_size,
        networks=make_networks(config, made_pretexts),
        input=config.model.input,
    )


def training(config: ConfigDict, made_tasks: Mapping, examples: int) -> Training:
    """The recipe's training on `examples` examples."""
    per_epoch, steps = steps_per_epoch(config, examples), total_steps(config, examples)
    warmup = config.optim.warmup_steps or round(config.optim.warmup_epochs * per_epoch)
    schedule = optim.make_schedule(config.optim, steps, warmup)
    return Training(
        program=program(config, made_tasks),
        weighting=make_weighting(config, steps, per_epoch),
        augment=make_augment(config),
        tx=optim.make_optimizer(config.optim, schedule),
        schedule=schedule,
        accumulate=config.optim.accumulate,
        ema=config.optim.ema,
        freeze=config.optim.freeze,
        skip_nonfinite=config.nonfinite == "skip",
        layout=order.Layout.of(config.batch_size, config.data.unlabelled_share),
    )


def train_step(made: Training, abstract: Any, mesh: Mesh) -> Any:
    """step.train_step compiled for this training; the new state takes the old one's place.

    abstract: what state.abstract tells of the state on the mesh.
    """
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jitted(
        step.train_step, made, donate_argnums=0, out_shardings=(where, sharding.replicated(mesh))
    )


def make_augment(config: ConfigDict) -> augment.Augment:
    """The recipe's augmentation, for its image size."""
    return augment.Augment(image_size=config.data.image_size, **config.augment)


def encoder_alone(config: ConfigDict) -> Program:
    """The recipe's encoder, without tasks and pretexts."""
    with (alone := config.copy_and_resolve_references()).unlocked():
        alone.model.fusion, alone.pretexts = "", ConfigDict()
    return program(alone, {})


def check_best(config: ConfigDict, made_tasks: Mapping, validation: Any) -> None:
    """Raises UserError if checkpoint.best cannot be a number that the validation split yields.

    Each task says which metrics it has; whether the split defines one, such as the AUC of a split
    that holds a single class, its metrics of made-up predictions tell.
    """
    best = config.checkpoint.best
    if not best:
        return
    if validation is None:
        raise UserError(f"checkpoint.best {best!r} needs data.validation, which is empty.")
    name, slash, metric = best.partition("/")
    if not slash:
        raise UserError(f"checkpoint.best {best!r} must be TASK/METRIC, as 'expression/accuracy'.")
    task = lookup(made_tasks, name, "task in checkpoint.best:")
    lookup(dict.fromkeys(task.metric_names), metric, f"metric of {name} in checkpoint.best:")
    labels = {label: pipeline.column(validation, label) for label in task.labels}
    outputs = jnp.zeros((len(validation), task.num_outputs), jnp.float32)
    try:
        found = task.metrics(np.asarray(task.predict(outputs)), labels)
    except UserError as error:
        split = config.data.validation
        raise UserError(f"checkpoint.best {best!r} on the split {split!r}: {error}") from None
    if found[metric] is None:
        raise UserError(
            f"checkpoint.best {best!r} is undefined on the split {config.data.validation!r}, as a "
            "measure of several classes is where one alone occurs; choose another metric."
        )


def loading(config: ConfigDict, labels: Sequence[str], batch_size: int) -> dict[str, Any]:
    """The arguments of pipeline's batches that follow from a recipe."""
    data = config.data
    return {
        "labels": labels,
        "image_size": data.decode_size or data.image_size,
        "batch_size": batch_size,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "threads": data.threads,
        "tolerate_corrupt": data.tolerate_corrupt,
    }


def jitted(function, constant: Program | Training, **options: Any):
    """`function(constant, …)` compiled for this program, or for this training."""
    return jax.jit(functools.partial(function, constant), **options)
