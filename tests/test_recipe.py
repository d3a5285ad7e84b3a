"""A recipe's keys are used or refused, and every recipe in configs/ can be built."""

import importlib
import json
import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks.compile_time import arguments_of, faces
from hmtl_jax import build, recipe, rules, state
from hmtl_jax.data import augment
from hmtl_jax.data.readers import READERS
from hmtl_jax.errors import UserError
from hmtl_jax.tasks.data import balanced_weights, class_weights
from tests import tiny

CONFIGS = sorted(
    path.stem
    for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem != "__init__"
)


##### Every recipe that the repository holds #####


@pytest.mark.parametrize("name", CONFIGS)
def test_every_recipe_builds(name):
    module = importlib.import_module(f"configs.{name}")
    assert f"--config=configs/{name}.py" in module.__doc__
    assert "\n\nPaper: " in module.__doc__ and "\n\nExpected" in module.__doc__
    if module.get_config.__code__.co_argcount == 0 and module.get_config().job != "train":
        return  # trains nothing
    parameters = module.get_config.__code__.co_argcount
    assert parameters or arguments_of(name, module) == [""]
    for argument in arguments_of(name, module):
        config = module.get_config(argument) if argument else module.get_config()
        assert not unknown_keys(config, recipe.defaults())
        rules.check(config)
        # What its docstring tells to prepare can be prepared; `own` has the user's own set.
        assert config.data.name in READERS or name == "own"
        training = build.training(config, build.make_tasks(config, faces(config)), 25_000)
        made = jax.eval_shape(lambda training=training: state.create(training))
        heads = {f"heads_{name}" for name in config.tasks}
        decoded = training.program.pretexts.items()
        decoders = {f"decoders_{name}" for name, part in decoded if part.decoder_spec()}
        assert set(made.params) == {"encoder"} | heads | decoders
        promised = [kind for kind in ("mae", "puzzle", "inpaint") if f"_{kind}" in name]
        stage = {"finetune", "supervised", "pretrain"} & set(argument.split(","))
        assert stage or set(promised) <= {part.kind for part in config.pretexts.values()}
        steps = recipe.total_steps(config, 25_000)
        rates = [float(training.schedule(step)) for step in (0, steps // 2, steps)]
        assert rates[1] > rates[2] and rates[0] < rates[1]


@pytest.mark.parametrize(
    "name", ["affectnet_pretrain_finetune", "headpose_300wlp_rotation_pretrain_puzzle"]
)
def test_a_recipe_of_two_stages_asks_which(name):
    module = importlib.import_module(f"configs.{name}")
    for argument in ("", "pretrain,finetune", "pretrain,puzzle"):
        with pytest.raises(UserError, match=r"Say which stage|is unknown; known"):
            module.get_config(argument)


def unknown_keys(config, known):
    """Keys of a recipe that no default names, tasks and pretexts left out."""
    found = set(recipe.flat(config)) - set(recipe.flat(known))
    return {key for key in found if not key.startswith(("tasks.", "pretexts."))}


@pytest.mark.parametrize("name", ["ferplus_supervised", "ferplus_mae_lbp"])
def test_an_unknown_argument_of_a_recipe_is_refused(name):
    module = importlib.import_module(f"configs.{name}")
    with pytest.raises(UserError, match="argument 'tpu' is unknown; known: cpu"):
        module.get_config("tpu")


##### What is asked for is what is built #####


def built(changes):
    """A training of the tiny recipe with `{"SECTION.KEY": value}` changed."""
    config = tiny.config(8)
    config.update_from_flattened_dict(changes)
    rules.check(config)
    return build.training(config, build.make_tasks(config, tiny.Source()), 8)


def weights(training, step=0):
    made = training.weighting.weights(training.weighting.init(), {}, {}, step)
    return {name: float(weight) for name, weight in made.items()}


def test_a_program_follows_its_recipe():
    config = tiny.config(8, accumulate=2, ema=0.5)
    config.nonfinite = "skip"
    config.augment.flip = 0.5
    config.model.update({"pool": "mean", "drop_path": 0.1, "head_dropout": 0.3, "remat": True})
    config.tasks.expression.label_smoothing = 0.2
    config.pretexts.mae.mask_ratio = 0.5
    training = tiny.training(config)
    assert (training.accumulate, training.ema) == (2, 0.5)
    assert training.skip_nonfinite
    assert training.augment == augment.Augment(image_size=16, flip=0.5)
    assert weights(training) == {"expression": pytest.approx(0.1), "mae": pytest.approx(0.9)}
    encoder, task = training.program.model.encoder, training.program.tasks["expression"]
    assert (encoder.patch, encoder.dim, encoder.depth, encoder.heads) == (4, 16, 2, 2)
    assert (encoder.pool, encoder.drop_path, encoder.remat, encoder.scan) == (
        "mean",
        0.1,
        True,
        False,
    )
    assert training.program.model.heads["expression"].dropout == 0.3
    assert (task.classes, task.label_smoothing) == (tiny.CLASSES, 0.2)
    mae = training.program.pretexts["mae"]
    assert (mae.patch, mae.image_size, mae.num_kept) == (4, 16, 8)


def test_every_augmentation_is_off_by_default():
    assert built({}).augment == augment.Augment(image_size=16)
    assert set(recipe.defaults().augment) == set(augment.Augment.__dataclass_fields__) - {
        "image_size"
    }


def test_weights_of_the_parts_multiply():
    training = built(
        {"weighting.name": "fixed", "tasks.expression.weight": 2.0, "pretexts.mae.weight": 0.5}
    )
    assert weights(training) == {"expression": 2.0, "mae": 0.5}


def test_balanced_weights_are_majority_count_by_class_count():
    config = tiny.config(8)
    config.tasks.expression.class_weights = "balanced"
    # Four calm, two glad, one grim, one without a label.
    made = build.make_tasks(config, tiny.Source())
    assert made["expression"].class_weights == (1.0, 2.0, 4.0)
    assert balanced_weights(np.array([0, 0, 0, 1, -1]), 3) == (1.0, 3.0, 1.0)


def test_weights_by_the_effective_number_of_examples():
    """Cui 2019, eq. 2, against its own words: E = (1 - β^n) / (1 - β), the weight is 1 / E."""
    labels = np.repeat([0, 1, 2], [1000, 100, 10])
    for given, beta in (("effective", 0.999), ("effective_0.9", 0.9), ("effective_0", 0.0)):
        number = np.array([sum(beta**i for i in range(n)) for n in (1000, 100, 10)])
        expected = (1 / number) / (1 / number).mean()
        np.testing.assert_allclose(class_weights("key", given, lambda: labels, 3), expected)
    assert class_weights("key", "none", None, 3) == ()
    assert class_weights("key", "balanced", lambda: labels, 3) == (1.0, 10.0, 100.0)
    for wrong in ("effective_1", "effective_x"):
        with pytest.raises(UserError, match=r"give 'effective_' and a number β in \[0, 1\)"):
            class_weights("key", wrong, lambda: labels, 3)


def test_class_weights_are_given_or_none():
    config = tiny.config(8)
    assert build.make_tasks(config, tiny.Source())["expression"].class_weights == ()
    part = recipe.task("classification", label="expression", class_weights=(1, 2, 3))
    config.tasks.expression = part
    assert build.make_tasks(config, tiny.Source())["expression"].class_weights == (1.0, 2.0, 3.0)
    for wrong in ("balance", (1.0, 2.0)):
        config.tasks.expression = recipe.task(
            "classification", label="expression", class_weights=wrong
        )
        with pytest.raises(
            UserError, match=r"class_weights is .*; it must be 'none', 'balanced' or 3 num"
        ):
            build.make_tasks(config, tiny.Source())


def test_steps_come_from_epochs_or_are_given():
    config = tiny.config(8)
    config.steps, config.epochs = 0, 2.5
    assert recipe.steps_per_epoch(config, 39) == 4  # the rest fills no batch
    assert recipe.total_steps(config, 39) == 10
    config.steps = 7
    assert recipe.total_steps(config, 39) == 7
    with pytest.raises(UserError, match="batch_size 8 is larger than the 7 training examples"):
        recipe.steps_per_epoch(config, 7)


def test_pretraining_reads_the_subset_of_the_tasks():
    config = tiny.config(8)
    wanted = recipe.stratified_by(config)
    recipe.pretrain_only(config)
    assert not config.tasks
    assert recipe.stratified_by(config) == wanted == "expression"


##### What is wrong is said #####


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.encoder": "resnet/16"}, "Unknown encoder 'resnet'; known: B, H, L, S, Ti"),
        ({"model.encoder": "Ti/5"}, "patch 5 does not divide the image size 16; choose .*4, 8, 16"),
        ({"model.encoder": "Ti/32"}, "patch 32 does not divide the image size 16"),
        ({"optim.name": "adam"}, "Unknown optimizer 'adam'; known: adamw, lion, muon"),
        ({"optim.schedule": "linear"}, "Unknown schedule 'linear'; known: constant, cosine"),
        (
            {"weighting.name": "geo"},
            "Unknown weighting 'geo'; known: dwa, fixed, .* Did you mean 'geometric'",
        ),
        (
            {"tasks.expression.weight": 0.0, "pretexts.mae.weight": 0.0},
            "The weights of expression, mae are all 0; set one above 0",
        ),
        (
            {"pretexts.mae.weight": -1.0},
            r"pretexts\.mae\.weight is -1.0; give a weight of 0 or more",
        ),
        (
            {"weighting.name": "dwa", "weighting.temperature": 0.0},
            r"weighting\.temperature is 0.0; give a number above 0",
        ),
        ({"weighting.lam": 1.5}, r"weighting\.lam is 1.5; give a number from 0 to 1"),
        (
            {"tasks.expression.kind": "classify"},
            "Unknown task 'classify'; known: .*Did you mean 'classification'",
        ),
        (
            {"pretexts.mae.kind": "puzle"},
            "Unknown pretext 'puzle'; known: drloc, inpaint, mae, .*Did you mean 'puzzle'",
        ),
        (
            {"pretexts.mae.targets": ("lbp_unifrom",)},
            r"Unknown texture 'lbp_unifrom'; .*Did you mean 'lbp_uniform'",
        ),
        (
            {"pretexts.mae.decoder": "conv"},
            r"Unknown pretexts\.mae\.decoder 'conv'; known: .*tokens",
        ),
        ({"tasks.expression.label": "emotion"}, r"label 'emotion' is not in the data set; it has "),
        ({"tasks.expression.label": "valence"}, "'valence' is not a class label"),
        ({"model.pool": "max"}, r"model\.pool is 'max'; it must be one of cls, mean"),
        ({"model.positions": "rope"}, r"model\.positions is 'rope'"),
        ({"model.dtype": "float16"}, r"model\.dtype is 'float16'; .* float32, bfloat16"),
        ({"stream": "two"}, "stream is 'two'; it must be one of clean, one_stream, siamese"),
        (
            {"stream": "one_stream", "model.input": "lbp"},
            r"the view of pretexts\.mae, which shows 'rgb', but .* model\.input 'lbp'; set "
            r"model\.input to 'rgb', the stream to 'clean', or pretexts\.mae\.in_stream to False",
        ),
        (
            {"stream": "siamese", "pretexts.mae.in_stream": False},
            "stream 'siamese' needs a task, and a pretext with in_stream",
        ),
        (
            {"model.fusion": "sum", "stream": "one_stream"},
            r"model\.fusion 'sum' reads .* 'one_stream' does not; set stream to 'clean'",
        ),
        (
            {"pretexts.mae.decoder_heads": 3},
            r"pretexts\.mae\.decoder_heads 3 must divide decoder_dim 8",
        ),
        ({"model.fusion": "add"}, r"model\.fusion is 'add'; it must be one of .*concat"),
        ({"model.input": "hsv"}, r"model\.input is 'hsv'; it must be one of rgb, "),
        ({"job": "test"}, "job is 'test'; it must be one of train, probe"),
        ({"nonfinite": "ignore"}, "nonfinite is 'ignore'"),
        ({"data.subset": 0.0}, r"data\.subset is 0.0; give a share in \(0, 1\]"),
        ({"optim.ema": 1.0}, r"optim\.ema is 1.0; give a decay in \[0, 1\)"),
        ({"batch_size": 0}, "batch_size is 0; give a whole number, 1 or more"),
        ({"data.image_size": 0}, r"data\.image_size is 0; give a whole number, 1 or more"),
        ({"data.name": ""}, r"data\.name is empty; name the prepared set"),
        ({"model.drop_path": 2.0}, r"model\.drop_path is 2.0; give a share in \[0, 1\)"),
        ({"log_every": 0}, "log_every is 0; give a whole number"),
        ({"steps": 0, "epochs": 0.0}, "trains for no step"),
        ({"augment.flip": 2.0}, r"augment\.flip is 2.0"),
    ],
)
def test_a_wrong_value_is_named_with_its_mend(changes, says):
    with pytest.raises(UserError, match=says):
        built(changes)


def test_a_recipe_trains_something_under_one_name():
    config = tiny.config(8)
    config.tasks, config.pretexts = ConfigDict(), ConfigDict()
    with pytest.raises(UserError, match="neither a task nor a pretext"):
        rules.check(config)
    config = tiny.config(8)
    config.pretexts.expression = recipe.pretext_task("mae")
    with pytest.raises(UserError, match=r"one task or pretext, .* rename expression"):
        rules.check(config)
    config = tiny.config(8)
    config.pretexts.clean = recipe.pretext_task("mae")
    with pytest.raises(UserError, match="rename clean"):
        rules.check(config)


def test_a_refusal_names_the_part_as_the_recipe_does():
    config = tiny.config(8)
    config.pretexts.jig = recipe.pretext_task("puzzle", tiles=7)
    with pytest.raises(UserError, match=r"^pretexts\.jig\.tiles is 7"):
        tiny.training(config)
    config.pretexts.jig = recipe.pretext_task("mae", targets=("lbpp",))
    with pytest.raises(UserError, match=r"^pretexts\.jig: Unknown texture 'lbpp'"):
        tiny.training(config)
    config = tiny.config(8)
    config.tasks.face = recipe.task("multilabel", labels="attributes")
    with pytest.raises(
        UserError, match=r"^tasks\.face\.labels is 'attributes'; give a tuple of names"
    ):
        build.make_tasks(config, Labelled())


def test_tasks_read_the_views_of_pretexts_in_the_stream_alone():
    config = tiny.config(8)
    config.pretexts.puzzle = recipe.pretext_task("puzzle", tiles=2)
    config.pretexts.mae.in_stream = False
    for stream, wanted in (("one_stream", ("puzzle",)), ("siamese", ("clean", "puzzle"))):
        config.stream = stream
        rules.check(config)
        assert tiny.training(config).program.model.reads == {"expression": wanted}


def test_fusion_needs_a_task():
    config = tiny.config(8)
    config.tasks, config.model.fusion = ConfigDict(), "sum"
    with pytest.raises(UserError, match=r"model\.fusion 'sum' needs a task, .* has 0 and 1"):
        rules.check(config)
    config = tiny.config(8)
    config.model.fusion = "sum"
    recipe.pretrain_only(config)
    rules.check(config)


def test_parts_refuse_what_they_do_not_know_and_miss_what_they_need():
    with pytest.raises(
        UserError, match=r"Unknown task 'clasification'.*Did you mean 'classification'"
    ):
        recipe.task("clasification", label="expression")
    with pytest.raises(UserError, match="Unknown pretext 'jigsaw'; known: drloc, inpaint, mae"):
        recipe.pretext_task("jigsaw")
    with pytest.raises(
        UserError, match=r"no setting 'smoothing'; .*Did you mean 'label_smoothing'"
    ):
        recipe.task("classification", label="expression", smoothing=0.1)
    with pytest.raises(UserError, match="no setting 'patch'"):
        recipe.pretext_task("mae", patch=8)  # the encoder's
    with pytest.raises(UserError, match="classification part needs label"):
        recipe.task("classification")


def test_an_unknown_key_on_the_command_line_suggests_the_nearest():
    config = tiny.config(8)
    config.lock()
    with pytest.raises((AttributeError, KeyError), match="warmup_epochs"):
        config.optim.warmup_epoch = 3


##### Whether a workdir is of the same recipe #####


def test_differences_name_what_changes_the_run_and_nothing_else():
    ours, theirs = tiny.config(8), tiny.config(8)
    assert recipe.differences(recipe.flat(ours), recipe.flat(theirs)) == []
    ours.job, ours.log_every, ours.eval_batch_size = "probe", 1, 64
    ours.data.data_dir, ours.data.threads = "elsewhere", 9
    ours.mesh.fsdp, ours.checkpoint.keep = 4, 9
    assert recipe.differences(recipe.flat(ours), recipe.flat(theirs)) == []
    ours.optim.lr, ours.pretexts.mae.targets = 0.5, ("ldp",)
    assert recipe.differences(recipe.flat(ours), recipe.flat(theirs)) == [
        "optim.lr: 0.001 → 0.5",
        "pretexts.mae.targets: ['rgb', 'lbp'] → ['ldp']",
    ]
    del ours.pretexts["mae"]
    found = recipe.differences(recipe.flat(ours), recipe.flat(theirs))
    assert "pretexts.mae.mask_ratio: 0.75 → None" in found


##### Several kinds of tasks #####


class Labelled(tiny.Source):
    """A training split with a label of every form."""

    labels = ("age", "attributes", "expression", "pose", "valence")

    def __getitem__(self, index):
        vectors = {"attributes": np.zeros(2, np.int32), "pose": np.zeros(3, np.float32)}
        numbers = {"age": np.float32(30), "valence": np.float32(0)}
        return super().__getitem__(index) | vectors | numbers

    def class_names(self, label):
        names = {"attributes": ("glasses", "beard"), "pose": ("yaw", "pitch", "roll")}
        return names.get(label, tiny.CLASSES if label == "expression" else None)


def test_names_of_outputs_come_from_the_data_set():
    config = tiny.config(8)
    config.tasks = {
        "attributes": recipe.task("multilabel", labels=("attributes",)),
        "numbers": recipe.task("regression", labels=("valence", "age")),
        "pose": recipe.task("pose", labels=("pose",)),
    }
    made = build.make_tasks(config, Labelled())
    assert made["attributes"].columns == ("glasses", "beard")
    assert made["numbers"].columns == ("valence", "age")
    assert made["pose"].num_outputs == 6


@pytest.mark.parametrize(
    "task",
    [
        recipe.task("multilabel", labels=("attributes", "hat")),
        recipe.task("binary", label="hat"),
        recipe.task("pose", labels=("hat",)),
    ],
)
def test_a_label_that_the_data_set_lacks_lists_those_it_has(task):
    config = tiny.config(8)
    config.tasks = {"mine": task}
    with pytest.raises(UserError, match=r"tasks\.mine\.labels? 'hat' .* it has age, attributes, "):
        build.make_tasks(config, Labelled())


def test_positive_weights_are_counted_given_or_none():
    class Attributes(Labelled):
        def __getitem__(self, index):
            rows = [(1, 0), (0, 0), (0, 0), (0, -1), (1, 1), (0, -1), (0, 0), (0, 0)]
            return super().__getitem__(index) | {"attributes": np.array(rows[index], np.int32)}

    config = tiny.config(8)
    wanted = {"none": (), "balanced": (3.0, 5.0), (2, 1): (2.0, 1.0)}
    for given, found in wanted.items():
        task = recipe.task("multilabel", labels=("attributes",), positive_weights=given)
        config.tasks = {"mine": task}
        assert build.make_tasks(config, Attributes())["mine"].positive_weights == found
    for wrong in ("equal", (1.0,)):
        task = recipe.task("multilabel", labels=("attributes",), positive_weights=wrong)
        config.tasks = {"mine": task}
        with pytest.raises(UserError, match=r"tasks\.mine\.positive_weights is .* or 2 num"):
            build.make_tasks(config, Attributes())


def test_logit_adjustment_gets_the_shares_of_the_classes():
    config = tiny.config(8)
    config.tasks.expression.logit_adjustment = 1.0
    # Four calm, two glad, one grim, one without a label.
    made = build.make_tasks(config, tiny.Source())
    np.testing.assert_allclose(made["expression"].priors, [4 / 7, 2 / 7, 1 / 7])


def test_angles_are_not_mixed():
    config = tiny.config(8)
    config.tasks = {"pose": recipe.task("pose", labels=("pose",))}
    config.augment.mixup = 0.8
    with pytest.raises(
        UserError, match=r"tasks\.pose: the mean of two of its labels .* augment\.mixup"
    ):
        build.make_tasks(config, Labelled())


@pytest.mark.parametrize("key", ["randaugment", "rotation", "shear"])
def test_a_pose_is_not_turned_by_augmentation(key):
    config = tiny.config(8)
    config.tasks = {"pose": recipe.task("pose", labels=("pose",))}
    config.augment.zoom = config.augment.shift = 0.2
    build.make_tasks(config, Labelled())
    config.augment[key] = (2, 9) if key == "randaugment" else 0.5
    with pytest.raises(
        UserError, match=r"tasks\.pose: turned .* augment\.rotation and .* to False"
    ):
        build.make_tasks(config, Labelled())
    config.augment.randaugment_geometric = False
    config.augment.rotation = config.augment.shear = 0.0
    build.make_tasks(config, Labelled())


def test_votes_are_asked_only_of_a_set_that_has_some():
    config = tiny.config(8)
    config.tasks.expression.soft = True
    source = tiny.Source()
    source.labels = ("expression",)
    with pytest.raises(UserError, match=r"tasks\.expression\.soft reads expression_soft, .* False"):
        build.make_tasks(config, source)


def test_a_class_that_loses_its_last_label_is_named():
    config = tiny.config(8)
    config.data.labelled = 0.4
    few = (0, 0, 0, 0, 0, 0, 1, 2)
    build.make_tasks(config, tiny.Source(few))  # by its own classes, each of which keeps one

    class Other(tiny.Source):
        labels = ("expression", "half")

        def __getitem__(self, index):
            return super().__getitem__(index) | {"half": np.int32(index % 2)}

    config.data.stratify = "half"
    with pytest.raises(UserError, match=r"leaves no label of expression '\w+'; raise it, or set"):
        build.make_tasks(config, Other(few))


def test_class_weights_are_those_of_the_labels_that_tasks_see():
    config = tiny.config(8)
    config.tasks.expression.class_weights = "balanced"
    config.data.labelled = 0.5
    source = tiny.Source((0,) * 8 + (1,) * 3 + (2,) * 2)
    made = build.make_tasks(config, source)["expression"]
    assert made.class_weights == (1.0, 2.0, 4.0)  # of 4, 2 and 1 that keep their label


def test_what_an_epoch_draws_is_told_by_the_names_of_the_classes():
    config = tiny.config(8)
    source = tiny.Source((0,) * 8 + (1,) * 3 + (2,) * 1)
    names = source.class_names("expression")[:3]
    config.data.sampling = 0.0
    assert build.drawn(config, source) == dict(zip(names, (4, 4, 4), strict=True))
    source = tiny.Source((0,) * 8 + (1,) * 3 + (2,) * 1 + (-1,) * 5)
    expected = {"of no class": 5} | dict(zip(names, (4, 4, 4), strict=True))
    assert build.drawn(config, source) == expected


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"data.labelled": 0.0}, r"data\.labelled is 0\.0; give a share in \(0, 1\]"),
        ({"data.labelled": 1.5}, r"data\.labelled is 1\.5"),
        ({"data.labelled": 0.2, "pretexts": {}}, r"No pretext reads the pictures without labels"),
        ({"data.unlabelled": "more", "pretexts": {}}, r"No pretext reads the pictures"),
        ({"data.unlabelled_share": 0.5}, r"data\.unlabelled_share .* there are none; set"),
        ({"data.sampling": 1.5}, r"data\.sampling is 1\.5; give a power from 0 to 1"),
        (
            {"data.sampling": 0.0, "data.labelled": 0.5},
            r"some pictures have none; give these a part",
        ),
    ],
)
def test_what_draws_pictures_by_their_labels_needs_these_and_a_share(keys, says):
    config = tiny.config(8)
    for key, value in keys.items():
        if key == "pretexts":
            config.pretexts = {}
        else:
            config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=says):
        rules.check(config)


def test_a_perceptual_loss_needs_the_moving_average():
    config = tiny.config(8)
    config.pretexts = {"inpaint": recipe.pretext_task("inpaint")}
    with pytest.raises(UserError, match=r"pretexts\.inpaint compares .* set optim\.ema"):
        tiny.training(config)
    config.optim.ema = 0.9
    assert tiny.training(config).program.pretexts["inpaint"].perceptual == 0.1


def test_an_imported_perceptual_network_needs_no_moving_average_and_must_fit_the_image():
    config = tiny.config(8)
    network = {"perceptual_encoder": "8x1x1/8", "perceptual_weights": "file.safetensors"}
    config.pretexts = {"inpaint": recipe.pretext_task("inpaint", **network)}
    assert set(tiny.training(config).program.networks) == {"inpaint"}
    config.pretexts.inpaint.perceptual_encoder = "8x1x1/5"
    with pytest.raises(
        UserError, match=r"^pretexts\.inpaint\.perceptual_encoder: patch 5 does not"
    ):
        tiny.training(config)
    config.pretexts.inpaint.perceptual_encoder = "8x1x1/8"
    config.pretexts.inpaint.perceptual = 0.0
    with pytest.raises(UserError, match=r"perceptual is 0, so .*perceptual_encoder is not read"):
        tiny.training(config)
    config.pretexts.inpaint.perceptual = 0.1
    config.pretexts.inpaint.perceptual_encoder = ""
    with pytest.raises(UserError, match="a network and its safetensors file; set both or neither"):
        tiny.training(config)


def test_learned_positions_refuse_views_of_another_size():
    config = tiny.config(8)
    config.pretexts = {"puzzle": recipe.pretext_task("puzzle", tiles=2, sizes=(16, 8))}
    tiny.training(config)
    config.model.positions = "learned"
    with pytest.raises(UserError, match=r"puzzle\.sizes holds \[8\], which learned positions"):
        tiny.training(config)


def test_a_key_that_was_not_there_yet_counts_as_its_default():
    ours = recipe.flat(tiny.config(8))
    theirs = {key: value for key, value in ours.items() if key != "optim.layer_decay"}
    assert recipe.differences(ours, theirs) == []
    found = recipe.differences(ours | {"optim.layer_decay": 0.5}, theirs)
    assert found == ["optim.layer_decay: 1.0 → 0.5"]


def test_a_sum_over_the_whole_batch_refuses_micro_batches():
    config = tiny.config(8, accumulate=2)
    config.tasks = {"valence": recipe.task("regression", labels=("valence",), objective="ccc")}
    with pytest.raises(
        UserError,
        match=r"tasks\.valence: its loss is taken over the whole batch.* set optim\.accum",
    ):
        build.make_tasks(config, Labelled())


def test_a_binary_task_needs_two_classes():
    config = tiny.config(8)
    config.tasks = {"expression": recipe.task("binary", label="expression")}
    with pytest.raises(UserError, match="has 3 classes, not two; make it a classification task"):
        build.make_tasks(config, Labelled())


def test_a_setting_that_a_part_got_later_counts_as_its_default():
    ours = recipe.flat(tiny.config(8))
    theirs = {key: value for key, value in ours.items() if key != "tasks.expression.focal"}
    assert recipe.differences(ours, theirs) == []
    found = recipe.differences(ours | {"tasks.expression.focal": 2.0}, theirs)
    assert found == ["tasks.expression.focal: 0.0 → 2.0"]


def test_a_recipe_comes_back_from_what_is_kept_of_it():
    config = tiny.config(8)
    config.augment.crop_scale, config.pretexts.mae.target_weights = (0.5, 1.0), (1.0, 2.0)
    kept = json.loads(json.dumps(recipe.flat(config)))
    assert recipe.leaves(recipe.unflat(kept)) == recipe.leaves(config)
    with pytest.raises(UserError, match="Another version of hmtl_jax made the recipe: 'new'"):
        recipe.unflat(kept | {"new": 1})
