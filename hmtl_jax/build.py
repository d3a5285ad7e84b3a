"""From a recipe, and what its data say, to the program that runs it."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hmtl_jax import optim, pretext, tasks, weighting
from hmtl_jax.data import augment, pipeline
from hmtl_jax.errors import UserError, lookup
from hmtl_jax.models import decoders, encoders, heads, hybrid
from hmtl_jax.program import Program
from hmtl_jax.recipe import steps_per_epoch, total_steps
from hmtl_jax.step import Training
from hmtl_jax.tasks import multilabel
from hmtl_jax.tasks.columns import columns

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def make_tasks(config: ConfigDict, source: Any) -> dict[str, Any]:
    """The recipe's tasks for a training split: names and class weights come from it."""
    made = {}
    for name, part in config.tasks.items():
        cls, settings = lookup(tasks.TASKS, part.kind, "task"), _settings(part)
        key = "labels" if "labels" in settings else "label"
        read = (settings[key],) if isinstance(settings[key], str) else settings[key]
        _check_labels(name, key, read, source)
        if "classes" in cls.__dataclass_fields__:
            settings |= _class_settings(name, settings, source)
        if "names" in cls.__dataclass_fields__:
            settings["names"] = tuple(pipeline.entry_names(source, read))
        if "positive_weights" in settings:
            settings["positive_weights"] = _positive_weights(name, settings, source)
        if part.kind == "binary" and len(source.class_names(read[0]) or "01") != 2:
            raise UserError(
                f"tasks.{name}.label {read[0]!r} has {len(source.class_names(read[0]))} classes, "
                "not two; make it a classification task."
            )
        turned = config.augment.randaugment[0] and config.augment.randaugment_geometric
        if part.kind == "pose" and turned:
            raise UserError(
                f"tasks.{name}: RandAugment turns and shears pictures, which falsifies a pose; set "
                "augment.randaugment_geometric to False."
            )
        if settings.get("objective") == "ccc" and config.optim.accumulate > 1:
            raise UserError(
                f"tasks.{name}.objective 'ccc' is taken over the whole batch; set "
                "optim.accumulate to 1, or the objective to 'mse'."
            )
        with _named("tasks", name, part.kind):
            made[name] = cls(**settings)
        _check_labels(name, key, made[name].labels, source)
        if (config.augment.mixup or config.augment.cutmix) and not made[name].mixes:
            raise UserError(
                f"tasks.{name}: the mean of two labels of a {part.kind} task means nothing; set "
                "augment.mixup and augment.cutmix to 0."
            )
    return made


def _check_labels(name: str, key: str, read: Sequence[str], source: Any) -> None:
    for label in read:
        if label not in source.labels:
            raise UserError(
                f"tasks.{name}.{key} {label!r} is not in the data set; it has "
                f"{', '.join(sorted(source.labels))}."
            )


def _settings(part: ConfigDict) -> dict[str, Any]:
    ours = ("kind", "weight", "weight_schedule", "final_weight", "in_stream")
    return {key: value for key, value in part.items() if key not in ours}


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


def _class_settings(name: str, settings: Mapping, source: Any) -> dict[str, Any]:
    """Class names of the label, class weights by the recipe's word, and priors if it needs them."""
    label = settings["label"]
    classes = source.class_names(label)
    if not classes:
        raise UserError(f"tasks.{name}.label {label!r} is not a class label in this data set.")
    weights, priors = settings["class_weights"], ()
    if weights == "balanced":
        weights = balanced_weights(pipeline.column(source, label), len(classes))
    elif weights == "none":
        weights = ()
    elif isinstance(weights, str) or len(weights) != len(classes):
        raise UserError(
            f"tasks.{name}.class_weights must be 'none', 'balanced' or {len(classes)} numbers."
        )
    if settings["logit_adjustment"]:
        priors = shares(pipeline.column(source, label), len(classes))
    return {
        "classes": tuple(classes),
        "class_weights": tuple(map(float, weights)),
        "priors": priors,
    }


def _positive_weights(name: str, settings: Mapping, source: Any) -> tuple[float, ...]:
    """One weight an attribute by the recipe's word; empty for none."""
    weights = settings["positive_weights"]
    if weights == "none":
        return ()
    if weights == "balanced":
        read = {label: pipeline.column(source, label) for label in settings["labels"]}
        return multilabel.balanced_positive_weights(columns(read, settings["labels"], np))
    if isinstance(weights, str) or len(weights) != len(settings["names"]):
        raise UserError(
            f"tasks.{name}.positive_weights must be 'none', 'balanced' or "
            f"{len(settings['names'])} numbers."
        )
    return tuple(map(float, weights))


def shares(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """The share of each class among the labelled examples."""
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    return tuple(float(count / max(counts.sum(), 1)) for count in counts)


def balanced_weights(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """Count of the majority class / count of the class (HMTL); a class without examples gets 1."""
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    return tuple(float(counts.max() / count) if count else 1.0 for count in counts)


def make_pretexts(config: ConfigDict) -> dict[str, Any]:
    """The recipe's pretexts for its encoder and image size."""
    made, image_size = {}, config.data.image_size
    encoder = encoders.parse(config.model.encoder)
    encoder.check(image_size)
    given = {
        "image_size": image_size,
        "patch": encoder.patch,
        "drops_tokens": encoder.drops_tokens,
    }
    for name, part in config.pretexts.items():
        cls = lookup(pretext.PRETEXTS, part.kind, "pretext")
        settings = _settings(part)
        settings |= {k: v for k, v in given.items() if k in cls.__dataclass_fields__}
        with _named("pretexts", name, part.kind):
            made[name] = cls(**settings)
        imports = getattr(made[name], "perceptual_encoder", "")
        if getattr(made[name], "perceptual", 0) and not imports and not config.optim.ema:
            raise UserError(
                f"pretexts.{name}.perceptual compares features under the moving average of the "
                f"encoder; set optim.ema, such as 0.999, or pretexts.{name}.perceptual_encoder, or "
                "the weight to 0."
            )
    return made


def make_networks(config: ConfigDict, made_pretexts: Mapping) -> dict[str, Any]:
    """By pretext, the encoder with imported weights in which it compares features."""
    made = {}
    with (settings := config.model.copy_and_resolve_references()).unlocked():
        settings.update(drop_path=0.0, pool="cls", positions="learned")
    for name, one in made_pretexts.items():
        if getattr(one, "perceptual", 0) and one.perceptual_encoder:
            with _named("pretexts", f"{name}.perceptual_encoder", "model.encoder"):
                encoder = encoders.parse(one.perceptual_encoder)
                encoder.check(config.data.image_size)
            made[name] = encoder.make(settings, DTYPES[config.model.dtype])
    return made


def make_model(config: ConfigDict, made_tasks: Mapping, made_pretexts: Mapping) -> hybrid.Hybrid:
    """The encoder of the recipe with a head a task and a decoder a pretext."""
    encoder, model = encoders.parse(config.model.encoder), config.model
    encoder.check(config.data.image_size)
    _check_sizes(config, made_pretexts)
    dtype = DTYPES[model.dtype]
    read = tuple(name for name in made_pretexts if config.pretexts[name].in_stream)
    reads = {
        "clean": ("clean",),
        "one_stream": read,
        "siamese": ("clean", *read),
    }

    def head(task: Any) -> Any:
        if model.fusion:
            return heads.FusionHead(task.num_outputs, model.fusion, model.head_dropout, dtype)
        return heads.LinearHead(task.num_outputs, model.head_dropout, dtype)

    return hybrid.Hybrid(
        encoder=encoder.make(model, dtype),
        heads={name: head(task) for name, task in made_tasks.items()},
        decoders={
            name: decoders.build(pretext.decoder_spec(), dtype)
            for name, pretext in made_pretexts.items()
        },
        reads=dict.fromkeys(made_tasks, reads[config.stream]),
        fuse=next(iter(made_pretexts)) if model.fusion else "",
    )


def _check_sizes(config: ConfigDict, made_pretexts: Mapping) -> None:
    """A table of learned positions has one size; fixed ones are computed for any."""
    for name, made in made_pretexts.items():
        others = set(getattr(made, "sizes", ())) - {config.data.image_size}
        if others and "/" in config.model.encoder and config.model.positions == "learned":
            raise UserError(
                f"pretexts.{name}.sizes holds {sorted(others)}, which learned positions do not "
                "fit; set model.positions to 'sincos'."
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
        seed=config.seed,
    )


def training(config: ConfigDict, made_tasks: Mapping, examples: int) -> Training:
    """The recipe's training on `examples` examples."""
    per_epoch, steps = steps_per_epoch(config, examples), total_steps(config, examples)
    schedule = optim.make_schedule(
        config.optim, steps, round(config.optim.warmup_epochs * per_epoch)
    )
    return Training(
        program=program(config, made_tasks),
        weighting=make_weighting(config, steps, per_epoch),
        augment=augment.Augment(image_size=config.data.image_size, **config.augment),
        tx=optim.make_optimizer(config.optim, schedule),
        schedule=schedule,
        accumulate=config.optim.accumulate,
        ema=config.optim.ema,
        freeze=config.optim.freeze,
        skip_nonfinite=config.nonfinite == "skip",
    )


def encoder_alone(config: ConfigDict) -> Program:
    """The recipe's encoder, without tasks and pretexts."""
    with (alone := config.copy_and_resolve_references()).unlocked():
        alone.model.fusion, alone.pretexts = "", ConfigDict()
    return program(alone, {})


def check_best(config: ConfigDict, made_tasks: Mapping) -> None:
    """Raises UserError if checkpoint.best cannot be a number that validation yields."""
    best = config.checkpoint.best
    if not best:
        return
    if not config.data.validation:
        raise UserError(f"checkpoint.best {best!r} needs data.validation, which is empty.")
    task, slash, _ = best.partition("/")
    if not slash:
        raise UserError(f"checkpoint.best {best!r} must be TASK/METRIC, as 'expression/accuracy'.")
    lookup(made_tasks, task, "task in checkpoint.best:")


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
