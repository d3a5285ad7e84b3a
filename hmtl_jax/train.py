"""The loop, from the recipe to the reports, read from top to bottom."""

import contextlib
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from hmtl_jax import (
    build,
    checkpoint,
    cluster,
    evaluate,
    figures,
    infer,
    initial,
    pictures,
    probe,
    recipe,
    sharding,
    state,
    step,
    workdir,
)
from hmtl_jax.cluster import say
from hmtl_jax.data import pipeline, records
from hmtl_jax.errors import UserError, lookup
from hmtl_jax.log import Log
from hmtl_jax.metrics.clock import Clock
from hmtl_jax.metrics.writer import Writer
from hmtl_jax.models import pretrained


def run(config: ConfigDict, folder: str) -> None:
    """Does the recipe's job in the workdir `folder`."""
    if config.job == "probe":
        probe.run(config, pathlib.Path(folder))
        return
    recipe.check(config)
    check_best(config)
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(config.batch_size, config.optim.accumulate, mesh)
    check_eval_batch(config.eval_batch_size, mesh)
    path = pathlib.Path(folder)
    if config.job != "train" and not (path / "checkpoints").is_dir():
        raise UserError(f"The workdir {path} holds no checkpoint to {config.job}; train first.")
    workdir.check(path, config)
    with jax.set_mesh(mesh), contextlib.closing(Run(config, path, mesh)) as prepared:
        {"train": train_and_evaluate, "evaluate": report, "export": export}[config.job](prepared)


class Run:
    """What training and evaluation both need: data, program, compiled steps and checkpoints."""

    def __init__(self, config: ConfigDict, folder: pathlib.Path, mesh: Any):
        self.config, self.workdir, self.mesh = config, folder, mesh
        # All at once: that a test split is missing must not show after training.
        splits = (config.data.train, config.data.validation, config.data.test)
        self.sources = {split: open_split(config, split) for split in splits if split}
        self.source = self.sources[config.data.train]
        made_tasks = build.make_tasks(config, self.source)
        self.labels = tuple(
            sorted({label for task in made_tasks.values() for label in task.labels})
        )
        self.batches = pipeline.train_batches(
            self.source,
            **self.loading(config.batch_size),
            workers=config.data.workers,  # evaluations are too short to start any
            seed=config.seed,
            subset=config.data.subset,
            stratify=recipe.stratified_by(config) or None,
        )
        self.training = build.training(config, made_tasks, self.batches.num_examples)
        self.program = self.training.program
        self.steps = recipe.total_steps(config, self.batches.num_examples)
        self.abstract = state.abstract(self.training, mesh)
        everywhere = sharding.replicated(mesh)
        where = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        self.train_step = build.jitted(
            step.train_step, self.training, donate_argnums=0, out_shardings=(where, everywhere)
        )
        if config.job == "train":
            # Traced here, because what does not fit shall be told before anything is written.
            rows = self.batches.abstract(config.batch_size)
            jax.eval_shape(self.train_step, self.abstract, sharding.of_batch(rows, mesh))
        self.eval_step = build.jitted(infer.eval_step, self.program, out_shardings=everywhere)
        self.checkpoints = checkpoint.Checkpoints(
            folder.absolute() / "checkpoints", config.checkpoint.keep, bool(config.checkpoint.best)
        )

    def loading(self, batch_size: int) -> dict[str, Any]:
        """The arguments that training and evaluation batches share."""
        return build.loading(self.config, self.labels, batch_size)

    def evaluate(self, split: str, current: state.TrainState) -> dict[str, dict]:
        """The metrics of a split, written to eval/SPLIT-STEP.json; the same on every process."""
        source = self.sources[split]
        size = self.config.eval_batch_size or self.config.batch_size
        batches = pipeline.eval_batches(source, **self.loading(size))
        found = evaluate.predictions(
            self.eval_step, state.evaluation_variables(current), batches, self.mesh
        )
        metrics = evaluate.metrics(self.program.tasks, found)
        if cluster.lead():
            examples, at = len(found["labels"]["index"]), int(current.step)
            about = {
                "step": at,
                "split": split,
                "examples": examples,
                "skipped_images": len(source) - examples,
                "weights": "moving average" if self.config.optim.ema else "last",
            }
            evaluate.write(self.workdir, split, at, about | metrics)
        return metrics

    def close(self) -> None:
        """Ends the data workers, and waits for the checkpoint that is being written."""
        self.batches.close()
        self.checkpoints.close()


def train_and_evaluate(run: Run) -> None:
    """Trains as the recipe says, going on from the workdir's last checkpoint if there is one."""
    config = run.config
    with contextlib.ExitStack() as stack:
        ##### The state to begin with, and the workdir #####
        preemption = stack.enter_context(contextlib.closing(cluster.Preemption()))
        describe(run)
        checkpoint.remove_partial(run.workdir / "checkpoints")
        if cluster.lead():
            workdir.check_space(run.workdir, state.nbytes(run.abstract), config.checkpoint.keep)
        current, clock, first = begin(run)
        workdir.claim(run.workdir, config)
        writer = None
        if cluster.lead():
            writer = stack.enter_context(Writer(run.workdir, resume_step=first or -1))
        stop_nonfinite = config.nonfinite == "stop"
        log = Log(writer, clock, run.steps, config.batch_size, stop_nonfinite)
        eval_every = config.eval_every or run.batches.steps_per_epoch
        save_every = config.checkpoint.every or eval_every

        ##### The loop: batch, step; now and then a log line, an evaluation, a checkpoint #####
        for at in range(first + 1, run.steps + 1):
            waiting = time.monotonic()
            batch = sharding.to_devices(next(run.batches), run.mesh)
            waited = time.monotonic() - waiting
            current, metrics = run.train_step(current, batch)
            log.keep(at, metrics, waited)
            if at % config.log_every == 0:
                log.write()

            last, stopped = at == run.steps, preemption.reached(at)
            score = None
            if at % eval_every == 0 or last:
                log.finish()
                clock.pause()
                score = validate(run, current, writer)
                clock.resume()
            if at % save_every == 0 or last or stopped or score is not None:
                # Comes before the checkpoint: a loss that is not finite must end the run here.
                log.finish()
                save(run, current, clock, score)
            if stopped and not last:
                run.checkpoints.wait()
                say(
                    f"stopped by {preemption.by} and saved step {at}; "
                    "the same command goes on from there"
                )
                return

        ##### The end: the test split, once, with the weights that validation chose #####
        run.checkpoints.wait()
        report(run)


def open_split(config: ConfigDict, split: str) -> Any:
    """A split of the recipe's data; the synthetic set is rendered where it is missing."""
    if config.data.name == "synthetic" and cluster.lead():
        render_if_missing(pathlib.Path(config.data.data_dir))
    cluster.wait("prepared")
    return records.open_split(config.data.data_dir, config.data.name, split)


def render_if_missing(data_dir: pathlib.Path) -> None:
    """Makes the synthetic set in a data_dir that has none."""
    if not data_dir.exists() or "synthetic" not in records.sets(data_dir):
        from hmtl_jax import prepare

        say("rendering the synthetic faces, once")
        prepare.prepare("synthetic", None, data_dir)


def check_eval_batch(size: int, mesh: Any) -> None:
    """Raises UserError unless every device gets equally many examples of an evaluation batch."""
    if size < 0 or size % mesh.size:
        raise UserError(
            f"eval_batch_size {size} does not divide over {mesh.size} devices; choose a multiple "
            f"of {mesh.size}, or 0 for that of training."
        )


def check_best(config: ConfigDict) -> None:
    """Raises UserError if checkpoint.best cannot be a number that validation yields."""
    best = config.checkpoint.best
    if not best:
        return
    if not config.data.validation:
        raise UserError(f"checkpoint.best {best!r} needs data.validation, which is empty.")
    task, slash, _ = best.partition("/")
    if not slash:
        raise UserError(f"checkpoint.best {best!r} must be TASK/METRIC, as 'expression/accuracy'.")
    lookup(config.tasks, task, "task in checkpoint.best:")


def describe(run: Run) -> None:
    """Says what is about to be trained, on what."""
    params = run.abstract.params
    devices, processes = jax.devices(), jax.process_count()
    say(
        f"{run.config.data.name}: {run.batches.num_examples:,} training examples, "
        f"{run.steps:,} steps of {run.config.batch_size}"
    )
    say(
        f"{state.count(params['encoder']):,} parameters in the encoder, {state.count(params):,} in "
        f"training; {len(devices)} × {devices[0].device_kind}"
        f"{f' in {processes} processes' if processes > 1 else ''}"
    )
    if run.program.model.fuse:
        say(f"inference with the fused view costs {fusion_cost(run):.2f} × that of the encoder")


def fusion_cost(run: Run) -> float:
    """Operations of a prediction over those of the encoder alone, as XLA counts them."""
    size = run.config.data.image_size
    image = {"image": jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)}

    variables = state.evaluation_variables(run.abstract)

    def operations(of: Any) -> float:
        costs = build.jitted(of, run.program).lower(variables, image).cost_analysis()
        return costs["flops"] if costs else float("nan")  # some backends count nothing

    return operations(infer.eval_step) / operations(infer.encode_step)


def begin(run: Run) -> tuple[state.TrainState, Clock, int]:
    """The state, clock and step to go on from: the last checkpoint's, or a new run's."""
    latest = run.checkpoints.latest()
    if latest is not None:
        meta = run.checkpoints.meta(latest, run.config)
        current = run.checkpoints.restore(latest, run.abstract)
        run.batches.set_state(meta["data"])
        say(f"going on from step {latest:,} of {run.steps:,}")
        return current, Clock.from_state(meta["clock"]), latest
    current = state.create_sharded(run.training, run.abstract)
    if run.config.init_from:
        current = initial.init_from(run.config, current)
    current = initial.networks(run.config, current)
    return current, Clock(), 0


def save(run: Run, current: state.TrainState, clock: Clock, score: float | None) -> None:
    """Starts to write a checkpoint; the position is that of the batches already used."""
    if not state.is_finite(current):
        raise UserError(
            f"The weights are not finite after step {int(current.step)}, and were not saved. Lower "
            "optim.lr or set optim.clip."
        )
    meta = {
        "step": int(current.step),
        "data": run.batches.get_state(),
        "clock": clock.state(),
        "recipe": recipe.flat(run.config),
    }
    run.checkpoints.save(current, meta, score)


def validate(run: Run, current: state.TrainState, writer: Writer | None) -> float | None:
    """Evaluates the validation split; returns the score that chooses the best checkpoint."""
    split, key = run.config.data.validation, run.config.checkpoint.best
    if not split or not run.program.tasks:
        return None
    found = evaluate.scalars(run.evaluate(split, current))
    if writer:
        writer.write(int(current.step), {f"eval/{split}/{name}": v for name, v in found.items()})
    say(f"  {split}: {shown(found)}")
    if not key:
        return None
    value = lookup(found, key, "metric in checkpoint.best:")
    return -value if key.rpartition("/")[2] in figures.ERRORS else value


def shown(found: dict[str, float]) -> str:
    """The metrics that belong into a line on the screen."""
    names = ("accuracy", "balanced_accuracy", "macro_f1", "nll", "auc", "ccc", "mae")
    return ", ".join(f"{n} {v:.4f}" for n, v in found.items() if n.rpartition("/")[2] in names)


def chosen_state(run: Run) -> tuple[state.TrainState, int, str]:
    """The state that validation chose, or else the last one; its step, and why it is that."""
    chosen, latest = run.checkpoints.best_step(), run.checkpoints.latest()
    why = f"the best by {run.config.checkpoint.best}"
    if chosen is None:
        chosen, why = latest, "the last"
    if chosen is None:
        raise UserError(f"The workdir {run.workdir} holds no checkpoint; train first.")
    run.checkpoints.meta(chosen, run.config)
    return run.checkpoints.restore(chosen, run.abstract), chosen, why


def export(run: Run) -> None:
    """Writes the chosen encoder to encoder.safetensors, in timm's naming."""
    current, chosen, why = chosen_state(run)
    name, path = run.config.model.encoder, run.workdir / "encoder.safetensors"
    variables = state.evaluation_variables(current)
    encoder = {part: found["encoder"] for part, found in variables.items() if "encoder" in found}
    gathered = jax.jit(lambda x: x, out_shardings=sharding.replicated(run.mesh))(encoder)
    if cluster.lead():
        size = run.config.data.image_size
        pretrained.save(path, name, jax.device_get(gathered), image_size=size)
    beside = ", but timm has no stem for small images" if name.endswith("-small") else ""
    say(f"the {name} of step {chosen} ({why}) is in {path}, in timm's naming{beside}")


def report(run: Run) -> None:
    """Evaluates the test split with the chosen checkpoint, draws the pictures, says the result."""
    current, chosen, why = chosen_state(run)
    split, found, files = run.config.data.test, {}, []
    if split and run.program.tasks:
        found = run.evaluate(split, current)
        files = [f"eval/{split}-{chosen}.json"]
    files += pictures.draw(run, current, found)
    result = f"{split}: {shown(evaluate.scalars(found))}" if found else "trained"
    say(f"{result} at step {chosen} ({why}); see {run.workdir}: {', '.join(files)}")
