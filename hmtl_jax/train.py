"""The loop, from the recipe to the report, read from top to bottom."""

import contextlib
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hmtl_jax import (
    build,
    checkpoint,
    cluster,
    evaluate,
    files,
    infer,
    initial,
    lock,
    pictures,
    profile,
    recipe,
    sharding,
    state,
    step,
    trained,
    workdir,
)
from hmtl_jax.cluster import say
from hmtl_jax.data import decoded, pipeline, records, sources
from hmtl_jax.errors import UserError, lookup
from hmtl_jax.log import Log
from hmtl_jax.metrics import names
from hmtl_jax.metrics.clock import Clock
from hmtl_jax.metrics.writer import Writer
from hmtl_jax.models import layers, vit


def run(config: ConfigDict, folder: pathlib.Path) -> None:
    """The job `train`: trains as the recipe says, going on from the folder's last checkpoint."""
    with contextlib.ExitStack() as stack:
        ##### Devices, and whose the workdir is #####
        mesh = sharding.make_mesh(**config.mesh)
        stack.enter_context(jax.set_mesh(mesh))
        sharding.check_batch(config.batch_size, config.optim.accumulate, mesh)
        sharding.check_eval_batch(config.eval_batch_size, mesh)
        workdir.check(folder, config)
        if cluster.lead():
            stack.enter_context(lock.held(folder))

        ##### The data #####
        # All splits at once: that a test split is missing must not show after training.
        opened = open_splits(config)
        source, validation = opened[config.data.train], opened.get(config.data.validation)
        identity = identity_of(config)
        workdir.check_data(folder, identity)
        tasks = build.make_tasks(config, source)
        build.check_best(config, tasks, validation)
        batches = train_batches(config, source, tasks, unlabelled(config))
        stack.enter_context(contextlib.closing(batches))

        ##### The compiled steps #####
        training = build.training(config, tasks, batches.num_examples)
        steps = recipe.total_steps(config, batches.num_examples)
        profile.check(config.profile_steps, steps)
        abstract = state.abstract(training, mesh)
        train_step = build.train_step(training, abstract, mesh)
        # Traced here, because what does not fit shall be told before anything is written.
        on_devices = pictures_on_devices(config, batches, mesh)
        rows = sharding.of_batch(batches.abstract(config.batch_size), mesh) | on_devices
        jax.eval_shape(train_step, abstract, rows)
        measure_step = evaluate.measure_step(training.program, mesh)
        validated = None  # read once, where data.cache says so
        if validation is not None:
            keep = config.data.cache != "none"
            validated = evaluate.batches_of(training.program, validation, config, keep)
        faces = None  # that show what pretexts have learned
        if validation is not None and training.program.pretexts:
            faces = pictures.Faces(training.program, config, mesh, config.data.validation)
        describe(config, training.program, abstract, source, batches, steps)

        ##### The state to begin with, and the workdir #####
        preemption = stack.enter_context(contextlib.closing(cluster.Preemption()))
        checkpoint.remove_partial(folder / "checkpoints")
        if cluster.lead():
            workdir.check_space(folder, state.nbytes(abstract), config.checkpoint.keep)
        keep, best = config.checkpoint.keep, config.checkpoint.best
        checkpoints = checkpoint.Checkpoints(folder.absolute() / "checkpoints", keep, best)
        stack.enter_context(contextlib.closing(checkpoints))
        resumed = go_on(config, checkpoints, abstract, batches)
        current, clock, first = resumed or (begin(config, training, abstract), Clock(), 0)
        if resumed:
            say(f"going on from step {first:,} of {steps:,}")
        workdir.claim(folder, config, trained.tasks_to_json(tasks), identity)
        writer = None
        if cluster.lead():
            writer = stack.enter_context(Writer(folder, resume_step=first or -1))
        unlearned = {n: pretext.unlearned for n, pretext in training.program.pretexts.items()}
        stop = config.nonfinite == "stop"
        log = Log(writer, clock, steps, config.batch_size, stop, unlearned)
        tracer = profile.Profile(folder, *config.profile_steps)
        stack.enter_context(contextlib.closing(tracer))
        eval_every = config.eval_every or batches.steps_per_epoch
        save_every = config.checkpoint.every or eval_every

        def validate(at: int, variables: Any) -> float | None:
            """Evaluates the validation split; returns what chooses the best checkpoint."""
            if validation is None:
                return None
            found, _ = evaluate.of_split(
                measure_step, training.program, variables, validation, config, validated
            )
            number = at // eval_every
            if faces and number & (number - 1) == 0:  # 1, 2, 4, 8 …
                pictures.progress(folder, at, faces.columns(variables), writer)
            return scored(config, folder, at, found, identity, writer)

        def save(at: int, current: state.TrainState, score: float | None) -> None:
            """Starts to write a checkpoint; its position is that of the batches already used."""
            check_finite(current, at)
            position, kept = batches.get_state(), recipe.flat(config)
            meta = {"step": at, "data": position, "clock": clock.state(), "recipe": kept}
            checkpoints.save(current, meta, score)

        ##### The loop: batch, step; now and then a log line, an evaluation, a checkpoint #####
        for at in range(first + 1, steps + 1):
            tracer.before(at)
            waiting = time.monotonic()
            batch = sharding.to_devices(next(batches), mesh) | on_devices
            waited = time.monotonic() - waiting
            # Nothing else may cross between host and devices, unseen, at each step.
            with jax.transfer_guard("disallow"):
                current, metrics = train_step(current, batch)
                log.keep(at, metrics, waited)
            tracer.after(at, metrics)
            if at % config.log_every == 0:
                log.write()

            last, stopped = at == steps, preemption.reached(at)
            evaluating = at % eval_every == 0 or last
            if evaluating or at % save_every == 0 or stopped:
                # Comes before all else: a loss that is not finite must end the run here.
                log.finish()
                score = None
                if evaluating:
                    clock.pause()
                    try:
                        score = validate(at, state.evaluation_variables(current))
                    except Exception:
                        save(at, current, None)  # a failed evaluation does not cost the state
                        raise
                    clock.resume()
                # Comes last: what the log and the reports say up to here, a checkpoint has seen.
                save(at, current, score)
            if stopped and not last:
                checkpoints.wait()
                say(
                    f"stopped by {preemption.by} and saved step {at}; "
                    "the same command goes on from there"
                )
                return

        ##### The end: the test split, once, with the weights that validation chose #####
        checkpoints.wait()
        # Everything is saved: a signal may end the report at once, and the same command makes it.
        preemption.close()
        # The report reads what it needs of the chosen state: it is not to stand beside this one.
        del current, resumed
        evaluate.report(trained.load(folder, mesh), config, mesh, measure_step)


def open_splits(config: ConfigDict) -> dict[str, sources.Opened]:
    """The recipe's splits by name; the synthetic set is rendered where it is missing."""
    data = config.data
    if data.name == "synthetic" and cluster.lead():
        render_if_missing(files.local(data.data_dir, "data.data_dir"))
    cluster.wait("prepared")
    named = (split for split in (data.train, data.validation, data.test) if split)
    return {split: sources.open_split(data.data_dir, data.name, split) for split in named}


def render_if_missing(data_dir: pathlib.Path) -> None:
    """Makes the synthetic set in a data_dir that has none, or one that was drawn otherwise."""
    from hmtl_jax import prepare
    from hmtl_jax.data.readers.synthetic import Synthetic

    newest = records.sets(data_dir).get("synthetic") if data_dir.exists() else None
    if newest is None or newest.name < Synthetic.version:
        say("rendering the synthetic faces, once")
        prepare.prepare("synthetic", None, data_dir)


def unlabelled(config: ConfigDict) -> sources.Opened | None:
    """The split of another set whose pictures take part without labels, where there is one."""
    name, _, split = config.data.unlabelled.partition("/")
    return sources.open_split(config.data.data_dir, name, split or "train") if name else None


def identity_of(config: ConfigDict) -> dict[str, Any]:
    """What the data say of themselves, and beside it the set that `data.unlabelled` names."""
    found = sources.identity(config.data.data_dir, config.data.name)
    name, _, _ = config.data.unlabelled.partition("/")
    if name:
        found["unlabelled"] = sources.identity(config.data.data_dir, name)
    return found


def train_batches(
    config: ConfigDict,
    source: sources.Opened,
    tasks: Mapping[str, Any],
    others: sources.Opened | None = None,
) -> pipeline.TrainBatches:
    """The endless batches that the recipe asks for, with the labels that its tasks read.

    others: what `unlabelled` told.
    """
    return pipeline.train_batches(
        source,
        **build.loading(config, build.labels_of(tasks), config.batch_size),
        workers=config.data.workers,  # evaluations are too short to start any
        seed=config.seed,
        subset=config.data.subset,
        stratify=recipe.stratified_by(config) or None,
        labelled=config.data.labelled,
        pictures=others,
        unlabelled_share=config.data.unlabelled_share,
        sampling=config.data.sampling,
        weights=config.data.weights,
        cache=config.data.cache,
    )


def pictures_on_devices(
    config: ConfigDict, batches: pipeline.TrainBatches, mesh: Mesh
) -> dict[str, jax.Array]:
    """What each step's batch is given beside the host's, where `data.cache` says so: all pictures.

    UserError where they don't fit, as far as the devices tell.
    """
    if config.data.cache != "device":
        return {}
    images = batches.take_images()
    share = images.nbytes // mesh.size
    for device in mesh.local_devices:
        told = device.memory_stats() or {}
        if "bytes_limit" in told:
            free = told["bytes_limit"] - told["bytes_in_use"]
            decoded.check_room(share, free, f"device {device.device_kind}", ("host", "none"))
    say(f"{images.nbytes / 1e6:,.0f} MB of decoded pictures on the devices")
    return {"pictures": sharding.rows_to_devices(images, mesh)}


def describe(
    config: ConfigDict, program: Any, abstract: state.TrainState, source, batches, steps
) -> None:
    """Says what is about to be trained, on what."""
    params, devices, processes = abstract.params, jax.devices(), jax.process_count()
    added = f" and {config.data.unlabelled}" if config.data.unlabelled else ""
    labelled = f", {batches.num_labelled:,} of them with labels"
    say(
        f"{config.data.name}{added}: {batches.num_examples:,} training examples"
        f"{labelled if batches.num_labelled < batches.num_examples else ''}, {steps:,} steps of "
        f"{config.batch_size}"
    )
    if config.data.sampling != 1 and not config.data.weights:  # with which each set has its own
        drawn = build.drawn(config, source)
        say("an epoch draws " + ", ".join(f"{n:,} {name}" for name, n in drawn.items()))
    say(
        f"{state.count(params['encoder']):,} parameters in the encoder, {state.count(params):,} in "
        f"training; {len(devices)} × {devices[0].device_kind}"
        f"{f' in {processes} processes' if processes > 1 else ''}"
    )
    if config.model.attention == "cudnn" and not takes_cudnn(config):
        say(
            "model.attention 'cudnn' changes nothing here: it is for a ViT in bfloat16 on an "
            "NVIDIA GPU, whose heads have a multiple of 8 numbers up to 128"
        )
    if program.model.fuse:
        cost = fusion_cost(program, state.evaluation_variables(abstract))
        say(f"inference with the fused view costs {cost:.2f} × that of the encoder")


def takes_cudnn(config: ConfigDict) -> bool:
    """Whether cuDNN's attention computes what this encoder asks of it, on these devices."""
    if not vit.is_vit(config.model.encoder):
        return False
    size = vit.parse(config.model.encoder)
    return layers.cudnn_takes(config.model.dtype, size.dim // size.heads)


def fusion_cost(program: Any, variables: Any) -> float:
    """Operations of a prediction over those of the encoder alone, as XLA counts them."""
    size = program.image_size
    image = {"image": jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)}

    def operations(of: Any) -> float:
        costs = build.jitted(of, program).lower(variables, image).cost_analysis()
        return costs["flops"] if costs else float("nan")  # some backends count nothing

    return operations(infer.eval_step) / operations(infer.encode_step)


def go_on(
    config: ConfigDict,
    checkpoints: checkpoint.Checkpoints,
    abstract: state.TrainState,
    batches: pipeline.TrainBatches,
) -> tuple[state.TrainState, Clock, int] | None:
    """State, clock and step of the last checkpoint, with the batches set behind it; or None."""
    latest = checkpoints.latest()
    if latest is None:
        return None
    meta = checkpoints.meta(latest)
    where = f"The checkpoint {checkpoints.folder / str(latest)}"
    workdir.check_recipe(meta["recipe"], config, where)
    batches.set_state(meta["data"])
    return checkpoints.restore(latest, abstract), Clock.from_state(meta["clock"]), latest


def begin(config: ConfigDict, training: step.Training, abstract: Any) -> state.TrainState:
    """The state of a new run: drawn from its seed, but for the weights that it takes over."""
    current = state.create_sharded(training, abstract, config.seed)
    if config.init_from:
        current = initial.init_from(config, current)
    return initial.networks(training.program.pretexts, current)


def check_finite(current: state.TrainState, at: int) -> None:
    """Raises UserError if the weights after step `at` are not finite: they are never saved."""
    if not jax.device_get(state.is_finite(current)):
        raise UserError(
            f"The weights are not finite after step {at}, and were not saved. Lower optim.lr or "
            "set optim.clip."
        )


def scored(
    config: ConfigDict,
    folder: pathlib.Path,
    at: int,
    found: Mapping[str, Any],
    identity: Mapping[str, Any],
    writer: Writer | None,
) -> float | None:
    """Writes and says what validation found at a step; returns the score of checkpoint.best."""
    split, best = config.data.validation, config.checkpoint.best
    about = evaluate.about(config, at, split, identity)
    evaluate.write(folder / "eval" / f"{split}-{at}.json", {**about, **found})
    measured = evaluate.scalars(found)
    if writer:
        writer.write(at, {f"eval/{split}/{name}": value for name, value in measured.items()})
    say(f"  {split}: {names.headlines(measured)}")
    if not best:
        return None
    return names.score(best, lookup(measured, best, "metric in checkpoint.best:"))
