"""Which values of a recipe no run could use: rows for single keys, and rules that join two."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from hmtl_jax import limits, recipe, textures, weighting
from hmtl_jax.data import augment
from hmtl_jax.errors import UserError, suggestion
from hmtl_jax.models import heads, layers, stems, vit

DTYPES = ("float32", "bfloat16")

# What must hold of each number, and how to say it. Those of augmentations, weightings, tasks and
# pretexts stand beside them.
LIMITS = {
    "seed": limits.whole(0, 2**32 - 1),
    "batch_size": limits.whole(1),
    "epochs": limits.number(0),
    "steps": limits.whole(0, instead="epochs count"),
    "log_every": limits.whole(1),
    "eval_every": limits.whole(0, instead="once an epoch"),
    "eval_batch_size": limits.whole(0, instead="as batch_size"),
    "profile_steps": (
        lambda pair: len(pair) == 2 and all(map(limits.is_whole, pair)) and 0 <= pair[0] <= pair[1],
        "two steps, first and last, or (0, 0)",
    ),
    "data.image_size": limits.whole(1),
    "data.decode_size": limits.whole(0, instead="as data.image_size"),
    "data.subset": limits.up_to_one("a share in (0, 1]"),
    "data.labelled": limits.up_to_one("a share in (0, 1]"),
    "data.unlabelled_share": limits.share(),
    "data.sampling": limits.number(0, 1, "a power"),
    "data.weights": limits.weights(),
    "data.threads": limits.whole(1),
    "data.workers": limits.whole(0, instead="threads alone"),
    "model.drop_path": limits.share(),
    "model.head_dropout": limits.share(),
    "optim.lr": limits.above(0, "a rate"),
    "optim.final_lr": limits.number(0, what="a rate"),
    "optim.warmup_epochs": limits.number(0),
    "optim.warmup_steps": limits.whole(0, instead="optim.warmup_epochs counts"),
    "optim.weight_decay": limits.number(0),
    "optim.b1": limits.share("a decay"),
    "optim.b2": limits.share("a decay"),
    "optim.layer_decay": limits.up_to_one("a factor in (0, 1]; 1 is without"),
    "optim.clip": limits.number(0, what="a norm, 0 for never,"),
    "optim.accumulate": limits.whole(1),
    "optim.ema": limits.share("a decay"),
    "mesh.data": limits.whole(-1, instead="all that are left"),
    "mesh.fsdp": limits.whole(-1, instead="all that are left"),
    "probe.neighbours": limits.whole(1),
    "plan.devices": limits.whole(0, instead="those at hand"),
    "plan.gib": limits.number(0, what="gibibytes,"),
    "plan.examples": limits.whole(0, instead="two batches"),
    "checkpoint.every": limits.whole(0, instead="at each evaluation"),
    "checkpoint.keep": limits.whole(1),
}
PART_LIMITS = {
    "weight": limits.number(0, what="a weight"),
    "final_weight": limits.number(0, what="a weight"),
}


def check(config: ConfigDict) -> None:
    """Raises UserError for a value that no run could use, before anything is opened or written."""
    check_keys(config)
    limits.check("", recipe.leaves(config), LIMITS)
    sized = {recipe.SIZE: config.data.image_size, **config.augment}
    limits.check("augment.", sized, augment.LIMITS)
    limits.check("weighting.", config.weighting, weighting.LIMITS)
    for section in ("tasks", "pretexts"):
        for name, part in config[section].items():
            limits.check(f"{section}.{name}.", part, PART_LIMITS)
    _check_choices(config)
    if config.job == "probe":
        return  # it reads a run that was trained already
    _check_names(config)
    _check_stream(config)
    _check_unlabelled(config)
    _check_weights(config)
    _check_sampling(config)
    _check_schedule_free(config)
    if not config.data.name:
        raise UserError("data.name is empty; name the prepared set, such as 'ferplus'.")
    if not config.steps and not config.epochs:
        raise UserError("The recipe trains for no step; set epochs or steps above 0.")


def _check_schedule_free(config: ConfigDict) -> None:
    """It averages what it trains, and the average takes the place of a schedule."""
    wanted = {"schedule": "constant", "ema": 0.0, "layer_decay": 1.0, "freeze": ""}
    for key, value in wanted.items():
        if config.optim.name == "schedule_free" and config.optim[key] != value:
            raise UserError(
                f"optim.name 'schedule_free' does not go with optim.{key} "
                f"{config.optim[key]!r}; set it to {value!r}."
            )


def _check_unlabelled(config: ConfigDict) -> None:
    """Pictures without labels are there for pretexts."""
    data = config.data
    without = data.labelled < 1 or data.unlabelled
    if without and not config.pretexts:
        raise UserError(
            "No pretext reads the pictures without labels; add one, or set data.unlabelled to '' "
            "and data.labelled to 1 (data.subset leaves pictures and labels out)."
        )
    if data.unlabelled_share and not without:
        raise UserError(
            "data.unlabelled_share is a share of pictures without labels, and there are none; set "
            "data.labelled below 1, or data.unlabelled to a prepared set."
        )


def _check_weights(config: ConfigDict) -> None:
    """Each set has its part of a batch."""
    weights, sets = config.data.weights, config.data.name.split(",")
    if weights and (len(weights) != len(sets) or len(sets) < 2 or not sum(weights)):
        raise UserError(
            f"data.weights is {weights!r}; give one number for each of the sets in data.name "
            f"{config.data.name!r}, of which there must be several, or none at all."
        )
    without = config.data.labelled < 1 or config.data.unlabelled
    if weights and without and not config.data.unlabelled_share:
        raise UserError(
            "data.weights shares a batch among sets, and some pictures have no labels; give these "
            "a part of each batch by data.unlabelled_share."
        )
    if weights and config.batch_size < len(sets):
        raise UserError(f"batch_size {config.batch_size} is too small for {len(sets)} sets.")


def _check_sampling(config: ConfigDict) -> None:
    """Classes are drawn by a label, among the rows that have one."""
    data = config.data
    if data.sampling == 1:
        return
    if not recipe.stratified_by(config):
        raise UserError(
            f"data.sampling {data.sampling} draws classes, and no task has any; set it to 1, or "
            "name a class label in data.stratify."
        )
    if (data.labelled < 1 or data.unlabelled) and not data.unlabelled_share:
        raise UserError(
            f"data.sampling {data.sampling} draws classes, and some pictures have none; give these "
            "a part of each batch by data.unlabelled_share."
        )


def check_keys(config: ConfigDict) -> None:
    """Raises UserError for a key that no run reads, or a section that is a value."""
    known = recipe.defaults()
    for key, default in known.items():
        if isinstance(default, ConfigDict) != isinstance(config.get(key), ConfigDict):
            raise UserError(f"The recipe's {key!r} must be {_kind(default)}, as in the defaults.")
    for section, known_keys in ((None, known), *((k, known[k]) for k in _sections(known))):
        for key in config if section is None else config[section]:
            if key not in known_keys:
                name = f"{section}.{key}" if section else key
                said = suggestion(name, recipe.flat(known))
                raise UserError(f"The recipe sets {name!r}, a key that nothing reads.{said}")
    for section, part in (("tasks", recipe.task), ("pretexts", recipe.pretext_task)):
        for name, settings in config[section].items():
            _check_part(f"{section}.{name}", part, settings)


def _kind(default: Any) -> str:
    return "a section of keys" if isinstance(default, ConfigDict) else "a value"


def _sections(config: ConfigDict) -> list[str]:
    """The sections whose keys are fixed."""
    return [
        key
        for key, value in config.items()
        if isinstance(value, ConfigDict) and key not in ("tasks", "pretexts")
    ]


def _check_part(name: str, part: Callable, settings: Any) -> None:
    if not isinstance(settings, ConfigDict) or "kind" not in settings:
        raise UserError(
            f"{name} is no part of a recipe; make it with recipe.{part.__name__}(KIND, …)."
        )
    try:
        part(**settings)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _check_choices(config: ConfigDict) -> None:
    choices = {
        "job": ("train", "probe", "plan"),
        "probe.pool": ("mean", "cls"),
        "nonfinite": ("stop", "skip"),
        "init_constants": ("imagenet", "half"),
        "data.cache": ("none", "host", "device"),
        "stream": ("clean", "one_stream", "siamese"),
        "model.fusion": ("", *heads.FUSIONS),
        "model.input": ("rgb", *textures.TEXTURES),
        "model.pool": ("cls", "mean"),
        "model.positions": (*vit.FIXED, "learned"),
        "model.stem": tuple(stems.STEMS),
        "model.attention": tuple(layers.ATTENTION),
        "model.dtype": DTYPES,
    }
    values = recipe.flat(config)
    for key, known in choices.items():
        if values[key] not in known:
            raise UserError(f"{key} is {values[key]!r}; it must be one of {', '.join(known)}.")


# Names that metrics and views have already.
TAKEN = ("clean", "total")


def _check_names(config: ConfigDict) -> None:
    if not config.tasks and not config.pretexts:
        raise UserError("The recipe has neither a task nor a pretext; give it at least one.")
    names = [*config.tasks, *config.pretexts]
    bad = {name for name in names if names.count(name) > 1 or name in TAKEN or "/" in name}
    if bad:
        raise UserError(
            f"A name stands for one task or pretext, is not {' nor '.join(map(repr, TAKEN))}, and "
            f"holds no '/'; rename {', '.join(sorted(bad))}."
        )


def _check_stream(config: ConfigDict) -> None:
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
