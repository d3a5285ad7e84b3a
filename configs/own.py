r"""Your own faces: what you have labels for, and a puzzle of all pictures beside it.

Paper: the form is HMTL's (arXiv 2105.06421); 2 × 2 tiles, heads that read their places, a weight
that falls to nothing, encoder, size and budget are ours.

    python -m hmtl_jax.prepare folder --source faces/ --label expression --name mine --data_dir data
    python -m hmtl_jax.main --config=configs/own.py --workdir=runs/mine
    python -m hmtl_jax.main --config=configs/own.py:supervised --workdir=runs/mine_supervised

Expected: depends on your faces; the two runs tell what the puzzle brings, and
`python -m hmtl_jax.compare runs/mine_supervised runs/mine` says it with an interval.

Two lines are yours: the name of the prepared set, and the task; `prepare` prints the tasks that
fit. Several tasks are several lines. `:gpu` takes a ResNet-18 at 96 px; without it, a small CNN of
48 px for two cores.
"""

from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `gpu`, `supervised`, or both with a comma."""
    gpu, supervised = recipe.arguments(arg, "gpu", "supervised")
    config = recipe.defaults()
    config.data.name = "mine"  # yours: what --name said
    config.tasks.expression = recipe.task("classification", label="expression")  # yours

    config.batch_size = 64
    config.steps = 6000 if gpu else 1500
    config.eval_every = config.steps // 6
    config.data.image_size = 96 if gpu else 48
    config.model.encoder = "resnet18-small" if gpu else "cnn24"
    if not gpu:
        config.model.dtype = "float32"
    config.augment.flip = 0.5
    config.augment.zoom = 0.2
    config.augment.shift = 0.1
    config.augment.color_jitter = (0.25, 0.25, 0.0, 0.0)
    config.optim.lr = 3e-3
    config.optim.warmup_steps = config.steps // 8
    config.optim.weight_decay = 0.05
    config.optim.clip = 1.0
    config.optim.ema = 0.995
    if not supervised:
        config.pretexts.puzzle = recipe.pretext_task("puzzle", tiles=2, heads="places", weight=0.25)
        config.pretexts.puzzle.weight_schedule = "linear"  # to 0: the last steps are the task's
    return config
