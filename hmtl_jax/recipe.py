"""A recipe as data: what every key means, and its default. rules.py says which values may be."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from hmtl_jax import pretext, tasks
from hmtl_jax.data import augment
from hmtl_jax.errors import UserError, lookup, nearest

SIZE = "image_size"  # of an augmentation: not its own, but that of the data


def defaults() -> ConfigDict:
    """Every key of a recipe, except those of its tasks and pretexts, which are theirs to name."""
    config = ConfigDict()
    config.job = "train"  # or probe: the frozen encoder of init_from; or plan: what it would take
    config.seed = 0
    config.batch_size = 128  # over all devices and micro-batches
    config.epochs = 100.0
    config.steps = 0  # in place of epochs where not 0
    config.log_every = 50  # steps
    config.eval_every = 0  # steps; 0: once an epoch
    config.eval_batch_size = 0  # 0: as batch_size
    config.nonfinite = "stop"  # or "skip": leave the state as it was for that step
    config.profile_steps = (0, 0)  # first and last of a trace in WORKDIR/profile; none at 0
    config.init_from = ""  # a workdir, checkpoint or safetensors file, whose encoder to start from
    config.init_constants = "imagenet"  # or "half": how a ViT's file wants its images normalised

    config.data = ConfigDict()
    config.data.name = ""  # or several, such as "affectnet,ferplus"; see data/sources.py
    config.data.data_dir = "data"
    config.data.train = "train"
    config.data.validation = "validation"  # chooses the best checkpoint
    config.data.test = "test"  # looked at once, at the end
    config.data.image_size = 224
    config.data.decode_size = 0  # what the host hands to the device; 0: image_size
    config.data.subset = 1.0  # a class-stratified part of train, the same for every seed
    config.data.labelled = 1.0  # such a part of those, whose labels tasks see; pretexts see all
    config.data.unlabelled = ""  # another set, or SET/SPLIT, whose pictures pretexts see too
    config.data.unlabelled_share = 0.0  # of each batch, from what has no labels; 0: as it comes
    config.data.weights = ()  # of several sets in data.name, each one's part of a batch
    config.data.sampling = 1.0  # a class is drawn as its count to this: 0.5 root, 0 all equally
    config.data.stratify = ""  # the label of those classes; empty: that of the first task with one
    config.data.threads = 4
    config.data.workers = 0  # decoding processes; 0: threads alone
    config.data.cache = "none"  # of decoded pictures: "host", or "device", gathered in the step
    config.data.tolerate_corrupt = False  # skip and count corrupt images in place of stopping

    config.augment = ConfigDict()
    for field, value in augment_defaults().items():
        config.augment[field] = value

    config.model = ConfigDict()
    config.model.encoder = "S/16"  # or "resnet50", "efficientnet_b0", and "-small" for 64 px
    config.model.input = "rgb"  # what tasks read: the picture, or the name of a texture
    config.model.pool = "cls"  # or "mean"; ViT, as the next one
    config.model.positions = "sincos"  # MAE's; "centred", better on small grids; or "learned"
    config.model.stem = "patch"  # ViT: one product a patch; or "hmlp", "conv": finer steps first
    config.model.drop_path = 0.0
    config.model.head_dropout = 0.0
    config.model.scan = False  # ViT: one compiled block for all layers: short compile times
    config.model.remat = False  # ViT: recompute activations: less memory
    config.model.attention = "plain"  # ViT; "cudnn": its fused kernel on NVIDIA GPUs, in bfloat16
    config.model.fusion = ""  # concat, sum, cross_attention: heads read a pretext's view as well
    config.model.dtype = "bfloat16"  # of the computation; state and reductions are float32

    config.tasks = ConfigDict()
    config.pretexts = ConfigDict()
    config.stream = "clean"  # what tasks read in training; one_stream: the pretexts' views
    # instead; siamese: both, as the geometric mean of the losses
    config.weighting = weighting_defaults()

    config.optim = ConfigDict()
    config.optim.name = "adamw"  # lion, muon, schedule_free, sgd
    config.optim.lr = 1e-3
    config.optim.schedule = "cosine"
    config.optim.final_lr = 1e-6
    config.optim.warmup_epochs = 5.0
    config.optim.warmup_steps = 0  # in place of warmup_epochs where not 0
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
    config.probe.stage = "pooled"  # of the encoder: what heads read, or stage2, block05, tokens …
    config.probe.pool = "mean"  # of a stage with places; or cls

    config.plan = ConfigDict()
    config.plan.devices = 0  # processors to pretend; 0: the devices at hand
    config.plan.gib = 0.0  # memory of a device, of which the largest batch is sought; 0: it is not
    config.plan.labels = ""  # where the data are not at hand: expression=8,valence=0
    config.plan.examples = 0  # of such data; 0: two batches

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
    """The augmentations, all off; their image_size is that of the data."""
    fields = dataclasses.fields(augment.Augment)
    return {field.name: field.default for field in fields if field.name != SIZE}


# What stands in each part beside the settings of its kind.
PART = {
    "kind": "",
    "weight": 1.0,
    "weight_schedule": "constant",
    "final_weight": 0.0,
    "in_stream": True,  # pretexts: whether tasks read its view too, where config.stream says so
}


def task(kind: str, **settings: Any) -> ConfigDict:
    """A task of a recipe: `config.tasks.expression = task("classification", label=...)`."""
    cls = lookup(tasks.TASKS, kind, "task")
    more = {key: value for key, value in PART.items() if key != "in_stream"}
    return _part(kind, settings, more | _defaults(cls) | cls.SETTINGS)


def pretext_task(kind: str, **settings: Any) -> ConfigDict:
    """A pretext of a recipe: `config.pretexts.mae = pretext_task("mae", targets=("lbp",))`."""
    cls = lookup(pretext.PRETEXTS, kind, "pretext")
    return _part(kind, settings, PART | _defaults(cls))


def _defaults(cls: Any) -> dict[str, Any]:
    """Every field that a recipe sets, with its default; the others are filled from elsewhere."""
    fields = dataclasses.fields(cls)
    return {field.name: field.default for field in fields if field.name not in cls.FILLED}


def _part(kind: str, settings: Mapping[str, Any], known: Mapping[str, Any]) -> ConfigDict:
    for name in settings:
        if name not in known:
            raise UserError(
                f"The {kind} part has no setting {name!r}; known: {', '.join(sorted(known))}."
                f"{nearest(name, known)}"
            )
    found = {**known, **settings, "kind": kind}
    missing = [key for key, value in found.items() if value is dataclasses.MISSING]
    if missing:
        raise UserError(f"The {kind} part needs {' and '.join(missing)}.")
    return ConfigDict(found)


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


def flat(config: ConfigDict) -> dict[str, Any]:
    """Dotted keys → JSON values, to compare and to keep."""
    return {key: _as_json(value) for key, value in leaves(config).items()}


def leaves(config: ConfigDict) -> dict[str, Any]:
    """Dotted keys → values as they are."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            out |= {f"{key}.{inner}": leaf for inner, leaf in leaves(value).items()}
        else:
            out[key] = value
    return out


def _as_json(value: Any) -> Any:
    return [_as_json(one) for one in value] if isinstance(value, (tuple, list)) else value


def unflat(kept: Mapping[str, Any]) -> ConfigDict:
    """The recipe that `flat` made dotted keys of; a key that it had not yet has its default."""
    config, parts = defaults(), {"tasks": {}, "pretexts": {}}
    known = flat(config)
    for key, value in kept.items():
        section, _, rest = key.partition(".")
        if section in parts:
            name, _, setting = rest.partition(".")
            parts[section].setdefault(name, {})[setting] = tuples(value)
        elif key in known:
            config.update_from_flattened_dict({key: tuples(value)})
        else:
            raise UserError(f"Another version of hmtl_jax made the recipe: {key!r} is unknown.")
    for name, settings in parts["tasks"].items():
        config.tasks[name] = task(**settings)
    for name, settings in parts["pretexts"].items():
        config.pretexts[name] = pretext_task(**settings)
    return config.lock()


def tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


# Keys that say where and how a run goes on, not what it computes. The two that say what happens on
# a failure are among them, so that a run that stopped at one can go on with the mend it was told.
FREE = (
    "job",
    "probe.",
    "plan.",
    "log_every",
    "nonfinite",
    "data.data_dir",
    "data.threads",
    "data.workers",
    "data.cache",
    "data.tolerate_corrupt",
    "mesh.",
    "checkpoint.every",
    "checkpoint.keep",
    "eval_batch_size",
    "profile_steps",
)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """`key: theirs → ours` for each key that changes what is computed: all but those of FREE.

    A key that one side lacks, because it was made before the key was, has its default.
    """
    ours, theirs = flat(unflat(ours)), flat(unflat(theirs))
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
    """Takes the tasks out of a recipe, and with them what is chosen by labels.

    A subset stays the one that the tasks have, so that fine-tuning reads the same images again.
    """
    config.data.stratify = stratified_by(config)
    config.tasks = ConfigDict()
    config.checkpoint.best = ""
    config.stream, config.model.fusion = "clean", ""


def rebuild(config: ConfigDict, *targets: str) -> None:
    """Adds a masked auto-encoder of these targets, with the mask ratio and λ of SSAT."""
    config.pretexts.mae = pretext_task("mae", targets=targets, mask_ratio=0.75)
    config.weighting.name, config.weighting.lam = "ssat", 0.1


def few_labels(config: ConfigDict, share: float) -> None:
    """Hides all labels but a share's, and doubles the batch by pictures without labels.

    So a step sees as many labels as that of a recipe with `data.subset` and the batch as it was.
    """
    config.data.labelled, config.data.unlabelled_share = share, 0.5
    config.batch_size *= 2
