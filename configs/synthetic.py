"""The demo: rendered faces of which one in twenty has a label, and a puzzle of all of them.

Paper: HMTL (arXiv 2105.06421) is the method; the faces, the encoder and all settings are ours.

    make demo
    python -m hmtl_jax.main --config=configs/synthetic.py:supervised --workdir=runs/demo/supervised
    python -m hmtl_jax.main --config=configs/synthetic.py --workdir=runs/demo/puzzle

Expected: 52 ± 4 % on test without the puzzle, 67 ± 4 with it, 57 ± 4 without it in twice the steps
(ours, five seeds, in experiments/synthetic_expression.md); a linear model on pixels has 40.1 %
from 6,000 labels, the most frequent class 20.8.

Eight expressions are learnt from 401 labels. `supervised` sees those faces alone; without it, a
quarter of each batch are faces without a label, and of all faces the encoder also says which
quarter of a shuffled picture is where, which counts less from step to step and nothing at the end.
Both have equal steps and batches. Renders the faces once into data/synthetic.
"""

from hmtl_jax import recipe

LABELLED = 0.05


def get_config(arg: str = ""):
    """arg: `` (with the pretext) or `supervised`."""
    (supervised,) = recipe.arguments(arg, "supervised")
    config = recipe.defaults()
    config.batch_size = 96
    config.steps = 400
    config.log_every = 50
    config.eval_every = 100

    config.data.name = "synthetic"
    config.data.image_size = 40
    config.augment.crop_scale = (0.7, 1.0)
    config.augment.flip = 0.5

    config.model.encoder = "cnn16"
    config.model.dtype = "float32"
    config.tasks.expression = recipe.task("classification", label="expression")

    config.optim.lr = 4e-3
    config.optim.warmup_steps = 25
    config.optim.clip = 1.0
    config.optim.ema = 0.98
    config.checkpoint.best = "expression/accuracy"
    if supervised:
        config.data.subset = LABELLED
    else:
        config.data.labelled = LABELLED
        config.data.unlabelled_share = 0.25
        config.pretexts.puzzle = recipe.pretext_task(
            "puzzle", tiles=2, heads="places", weight=0.25, weight_schedule="linear"
        )
    return config
