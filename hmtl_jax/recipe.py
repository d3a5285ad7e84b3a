"""A recipe: what every key means, its default, and how the whole is built from it."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from hmtl_jax import optim, pretext, tasks, textures, weighting
from hmtl_jax.data import augment, pipeline
from hmtl_jax.errors import UserError, lookup, nearest
from hmtl_jax.models import decoders, encoders, heads, hybrid
from hmtl_jax.step import Program
from hmtl_jax.tasks import multilabel
from hmtl_jax.tasks.columns import columns

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def defaults() -> ConfigDict:
    """Every key of a recipe, except those of its tasks and pretexts, which are theirs to name."""
    config = ConfigDict()
    config.job = "train"  # or evaluate, or export the workdir's best checkpoint; probe init_from
    config.seed = 0
    config.batch_size = 128  # over all devices and micro-batches
    config.epochs = 100.0
    config.steps = 0  # in place of epochs where not 0
    config.log_every = 50  # steps
    config.eval_every = 0  # steps; 0: once an epoch
    config.eval_batch_size = 0  # 0: as batch_size
    config.nonfinite = "stop"  # or "skip": leave the state as it was for that step
    config.init_from = ""  # a workdir or checkpoint whose encoder to start from

    config.data = ConfigDict()
    config.data.name = ""
    config.data.data_dir = "data"
    config.data.train = "train"
    config.data.validation = "validation"  # chooses the best checkpoint
    config.data.test = "test"  # looked at once, at the end
    config.data.image_size = 224
    config.data.decode_size = 0  # what the host hands to the device; 0: image_size
    config.data.subset = 1.0  # a class-stratified part of train, the same for every seed
    config.data.stratify = ""  # the label of those classes; empty: that of the first task with one
    config.data.threads = 4
    config.data.workers = 0  # decoding processes; 0: threads alone
    config.data.tolerate_corrupt = False  # skip and count corrupt images in place of stopping

    config.augment = ConfigDict()
    for field, value in augment_defaults().items():
        config.augment[field] = value

    config.model = ConfigDict()
    config.model.encoder = "S/16"  # or "resnet50", "efficientnet_b0", and "-small" for 64 px
    config.model.input = "rgb"  # what tasks read: the picture, or the name of a texture
    config.model.pool = "cls"  # or "mean"; ViT, as the next one
    config.model.positions = "sincos"  # or "learned"
    config.model.drop_path = 0.0
    config.model.head_dropout = 0.0
    config.model.scan = False  # ViT: one compiled block for all layers: short compile times
    config.model.remat = False  # ViT: recompute activations: less memory
    config.model.fusion = ""  # concat, sum, cross_attention: heads read a pretext's view as well
    config.model.dtype = "bfloat16"  # of the computation; state and reductions are float32

    config.tasks = ConfigDict()
    config.pretexts = ConfigDict()
    config.stream = "clean"  # what tasks read in training; one_stream: the pretexts' views
    # instead; siamese: both, as the geometric mean of the losses
    config.weighting = weighting_defaults()

    config.optim = ConfigDict()
    config.optim.name = "adamw"
    config.optim.lr = 1e-3
    config.optim.schedule = "cosine"
    config.optim.final_lr = 1e-6
    config.optim.warmup_epochs = 5.0
    config.optim.weight_decay = 0.05
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.layer_decay = 1.0  # factor of the step from each layer to the one below it
    config.optim.clip = 0.0  # global norm; 0: never
    config.optim.freeze = ""  # regex of parameter paths that stay as they are
    config.optim.accumulate = 1
    config.optim.ema = 0.0  # decay of the moving average that is evaluated; 0: none

    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.probe = ConfigDict()
    config.probe.label = ""  # what the job probe reads off the features; empty: the run's own
    config.probe.neighbours = 20

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 0  # steps between checkpoints; 0: at each evaluation
    config.checkpoint.keep = 2
    config.checkpoint.best = ""  # metric of the validation split, such as expression/accuracy
    return config


def weighting_defaults() -> ConfigDict:
    """How losses combine; each setting is read by the weightings that it names."""
    config = ConfigDict()
    config.name = "fixed"  # ssat, geometric, uncertainty, dwa, gradnorm, pcgrad
    config.lam = 0.1  # ssat: λ of the tasks, 1 − λ of the pretexts
    config.lr = 1e-3  # uncertainty, gradnorm: of the weights
    config.temperature = 2.0  # dwa
    config.alpha = 1.5  # gradnorm
    return config


def augment_defaults() -> dict[str, Any]:
    """The augmentations, all off; `image_size` is data.image_size."""
    fields = augment.Augment.__dataclass_fields__
    return {name: field.default for name, field in fields.items() if name != "image_size"}


def task(kind: str, **settings: Any) -> ConfigDict:
    """A task of a recipe: `config.tasks.expression = task("classification", label=...)`."""
    cls = lookup(tasks.TASKS, kind, "task")
    return _part(cls, kind, settings, filled={"classes", "priors", "names"})


def pretext_task(kind: str, **settings: Any) -> ConfigDict:
    """A pretext of a recipe: `config.pretexts.mae = pretext_task("mae", targets=("lbp",))`."""
    cls = lookup(pretext.PRETEXTS, kind, "pretext")
    # in_stream: whether tasks read its view too where config.stream says that they read views.
    filled = {"patch", "image_size", "drops_tokens"}
    return _part(cls, kind, settings, filled, in_stream=True)


def _part(cls: type, kind: str, settings: dict, filled: set[str], **more: Any) -> ConfigDict:
    """Every field of `cls` that the recipe may set, with its default; and `more` keys."""
    fields = {k: f.default for k, f in cls.__dataclass_fields__.items() if k not in filled}
    weight = {"weight": 1.0, "weight_schedule": "constant", "final_weight": 0.0}
    known = {"kind": kind, **weight, **more, **fields}
    for name in {"class_weights", "positive_weights"} & set(fields):
        known[name] = "none"  # or "balanced", or one number a class or attribute
    for name in settings:
        if name not in known:
            raise UserError(
                f"The {kind} part has no setting {name!r}; known: {', '.join(sorted(known))}."
                f"{nearest(name, known)}"
            )
    missing = [k for k, v in (known | settings).items() if v is dataclasses.MISSING]
    if missing:
        raise UserError(f"The {kind} part needs {' and '.join(missing)}.")
    return ConfigDict(known | settings)


def check(config: ConfigDict) -> None:
    """Raises UserError for a value that no run could use, before anything is opened or written."""
    choices = {
        "job": (config.job, ("train", "evaluate", "export", "probe")),
        "nonfinite": (config.nonfinite, ("stop", "skip")),
        "stream": (config.stream, ("clean", "one_stream", "siamese")),
        "model.fusion": (config.model.fusion, ("", *heads.FUSIONS)),
        "model.input": (config.model.input, ("rgb", *textures.TEXTURES)),
        "model.pool": (config.model.pool, ("cls", "mean")),
        "model.positions": (config.model.positions, ("sincos", "learned")),
        "model.dtype": (config.model.dtype, tuple(DTYPES)),
    }
    for key, (value, known) in choices.items():
        if value not in known:
            raise UserError(f"{key} is {value!r}; it must be one of {', '.join(known)}.")
    if not config.tasks and not config.pretexts:
        raise UserError("The recipe has neither a task nor a pretext; give it at least one.")
    names = [*config.tasks, *config.pretexts]
    bad = {name for name in names if names.count(name) > 1 or name == "clean" or "/" in name}
    if bad:
        raise UserError(
            "A name stands for one task or pretext, is not 'clean' and holds no '/'; rename "
            f"{', '.join(sorted(bad))}."
        )
    read = {name: part for name, part in config.pretexts.items() if part.in_stream}
    if config.stream != "clean" and not (config.tasks and read):
        raise UserError(
            f"stream {config.stream!r} needs a task, and a pretext with in_stream whose view it "
            "reads."
        )
    inputs = {name: part.get("input", "rgb") for name, part in read.items()}
    others = [name for name, shown in inputs.items() if shown != config.model.input]
    if config.stream != "clean" and others:
        raise UserError(
            f"stream {config.stream!r} trains the tasks on the view of pretexts.{others[0]}, which "
            f"shows {inputs[others[0]]!r}, but they are evaluated on model.input "
            f"{config.model.input!r}; set model.input to {inputs[others[0]]!r}, the stream to "
            f"'clean', or pretexts.{others[0]}.in_stream to False."
        )
    if config.model.fusion and not (config.tasks and len(config.pretexts) == 1):
        raise UserError(
            f"model.fusion {config.model.fusion!r} needs a task, and one pretext whose view it "
            f"fuses; the recipe has {len(config.tasks)} and {len(config.pretexts)}."
        )
    if config.model.fusion and config.stream != "clean":
        raise UserError(
            f"model.fusion {config.model.fusion!r} reads the pretext's view beside the clean one, "
            f"which the stream {config.stream!r} does not; set stream to 'clean'."
        )
    if not config.data.name:
        raise UserError("data.name is empty; name the prepared set, such as 'ferplus'.")
    if not 0.0 < config.data.subset <= 1.0:
        raise UserError(f"data.subset is a share in (0, 1], not {config.data.subset}.")
    if not 0.0 <= config.optim.ema < 1.0:
        raise UserError(f"optim.ema is a decay in [0, 1), not {config.optim.ema}.")
    positive = {key: config[key] for key in ("batch_size", "log_every")}
    positive |= {f"data.{key}": config.data[key] for key in ("image_size", "threads")}
    for key, value in positive.items():
        if value < 1:
            raise UserError(f"{key} must be at least 1, not {value}.")
    shares = {
        "model.drop_path": config.model.drop_path,
        "model.head_dropout": config.model.head_dropout,
    }
    for key, value in shares.items():
        if not 0.0 <= value < 1.0:
            raise UserError(f"{key} is a share in [0, 1), not {value}.")
    if config.steps < 0 or (config.steps == 0 and config.epochs <= 0):
        raise UserError("The recipe trains for no step; set epochs or steps above 0.")


def total_steps(config: ConfigDict, examples: int) -> int:
    """Steps of the whole run."""
    return config.steps or max(1, round(config.epochs * steps_per_epoch(config, examples)))


def steps_per_epoch(config: ConfigDict, examples: int) -> int:
    """Whole batches in one pass over the training examples."""
    if examples < config.batch_size:
        raise UserError(
            f"batch_size {config.batch_size} is larger than the {examples} training examples; "
            "lower it."
        )
    return examples // config.batch_size


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


def build(config: ConfigDict, source: Any, examples: int) -> Program:
    """The program of a recipe for `examples` training examples of `source`."""
    made_tasks, made_pretexts = make_tasks(config, source), make_pretexts(config)
    per_epoch, steps = steps_per_epoch(config, examples), total_steps(config, examples)
    schedule = optim.make_schedule(
        config.optim, steps, round(config.optim.warmup_epochs * per_epoch)
    )
    return Program(
        model=make_model(config, made_tasks, made_pretexts),
        tasks=made_tasks,
        pretexts=made_pretexts,
        weighting=make_weighting(config, steps, per_epoch),
        augment=augment.Augment(image_size=config.data.image_size, **config.augment),
        tx=optim.make_optimizer(config.optim, schedule),
        schedule=schedule,
        networks=make_networks(config, made_pretexts),
        input=config.model.input,
        seed=config.seed,
        accumulate=config.optim.accumulate,
        ema=config.optim.ema,
        skip_nonfinite=config.nonfinite == "skip",
    )


def build_encoder(config: ConfigDict) -> Program:
    """A program of the recipe's encoder alone, which trains nothing."""
    with (alone := config.copy_and_resolve_references()).unlocked():
        alone.model.fusion = ""
    return Program(
        model=make_model(alone, {}, {}),
        tasks={},
        pretexts={},
        weighting=weighting.Fixed({}),
        augment=augment.Augment(image_size=config.data.image_size),
        tx=optax.identity(),
        schedule=optax.constant_schedule(0.0),
        input=config.model.input,
        seed=config.seed,
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


def jitted(function, program: Program, **options: Any):
    """`function(program, …)` compiled; the program is a constant of the compilation."""
    return jax.jit(functools.partial(function, program), **options)


def flat(config: ConfigDict) -> dict[str, Any]:
    """Dotted keys → JSON values, to compare and to keep."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            out |= {f"{key}.{inner}": leaf for inner, leaf in flat(value).items()}
        else:
            out[key] = _as_json(value)
    return out


def _as_json(value: Any) -> Any:
    return [_as_json(one) for one in value] if isinstance(value, (tuple, list)) else value


# Keys that say where and how a run goes on, not what it computes. The two that say what happens on
# a failure are among them, so that a run that stopped at one can go on with the mend it was told.
FREE = (
    "job",
    "probe.",
    "log_every",
    "nonfinite",
    "data.data_dir",
    "data.threads",
    "data.workers",
    "data.tolerate_corrupt",
    "mesh.",
    "checkpoint.",
    "eval_batch_size",
)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """`key: theirs → ours` for each key that changes what is computed.

    A key that one side lacks, because it was made before or after the key was, has its default;
    but for the keys of tasks and pretexts, which have to be the same.
    """
    default = flat(defaults())
    ours, theirs = {**default, **ours}, {**default, **theirs}
    keys = sorted(set(ours) | set(theirs))
    return [
        f"{key}: {theirs.get(key)!r} → {ours.get(key)!r}"
        for key in keys
        if ours.get(key) != theirs.get(key) and not key.startswith(FREE)
    ]


def arguments(arg: str | None, *known: str) -> tuple[bool, ...]:
    """Which of the known words the recipe's argument holds, `a` or `a,b`; UserError for others."""
    given = set((arg or "").split(",")) - {""}
    for word in sorted(given - set(known)):
        raise UserError(f"The recipe's argument {word!r} is unknown; known: {', '.join(known)}.")
    return tuple(word in given for word in known)


def stratified_by(config: ConfigDict) -> str:
    """The label whose classes a subset keeps in proportion, or none."""
    of_tasks = (part.label for part in config.tasks.values() if "label" in part)
    return config.data.stratify or next(of_tasks, "")


def pretrain_only(config: ConfigDict) -> None:
    """Takes the tasks out of a recipe, and with them what is evaluated and chosen by labels.

    A subset stays the one that the tasks have, so that fine-tuning reads the same images again.
    """
    config.data.stratify = stratified_by(config)
    config.tasks = ConfigDict()
    config.data.validation = config.data.test = ""
    config.checkpoint.best = ""
    config.stream, config.model.fusion = "clean", ""
