"""The demo: rendered faces, eight expressions, and a masked auto-encoder of pixels and LBP maps.

Paper: SSAT (arXiv 2310.20704) and L-SSAT (arXiv 2409.19582) are the method; the faces are ours.

    make demo
    python -m hmtl_jax.main --config=configs/synthetic.py --workdir=runs/demo

Expected: 43.9 % on test (ours), where a linear model on pixels has 30.7 % and the majority class
20.8 %.

Renders the faces once into data/synthetic. Under five minutes of training on two cores.
"""

from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = recipe.defaults()
    config.batch_size = 64
    config.epochs = 10.0
    config.log_every = 125
    config.eval_every = 625

    config.data.name = "synthetic"
    config.data.image_size = 64
    config.augment.crop_scale = (0.7, 1.0)
    config.augment.flip = 0.5

    config.model.encoder = "96x4x3/8"
    config.model.pool = "mean"
    config.tasks.expression = recipe.task("classification", label="expression", label_smoothing=0.1)
    config.pretexts.mae = recipe.pretext_task(
        "mae", targets=("rgb", "lbp"), mask_ratio=0.75, decoder_depth=1, decoder_heads=4
    )
    config.weighting.name = "ssat"
    config.weighting.lam = 0.5  # SSAT has 0.1; a short run needs more of the task

    config.optim.lr = 7e-4
    config.optim.warmup_epochs = 1.0
    config.optim.clip = 1.0
    config.checkpoint.best = "expression/accuracy"
    return config
