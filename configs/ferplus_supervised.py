"""FER+, eight expressions by majority vote: supervised only, a small ViT for 48 px.

Paper: labels and protocol are those of Barsoum 2016. Encoder, schedule and augmentation are ours.

    python -m hmtl_jax.prepare ferplus --source ferplus.zip --data_dir data
    python -m hmtl_jax.main --config=configs/ferplus_supervised.py:cpu --workdir=runs/ferplus_sl

Expected: `:cpu` 70.9 % on test (ours, docs/results; 20 % of the labels: experiments/). Barsoum 2016
reports 84.99 % for a VGG13 from scratch, trained on the distribution of votes. The form for a GPU
has not been run to its end here.

`:cpu` is a smaller encoder that trains for about an hour on two cores.
"""

from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    (cpu,) = recipe.arguments(arg, "cpu")
    config = recipe.defaults()
    config.batch_size = 64 if cpu else 256
    config.epochs = 30.0 if cpu else 300.0
    config.log_every = 100 if cpu else 50

    config.data.name = "ferplus"
    config.data.image_size = 48
    config.augment.crop_scale = (0.6, 1.0) if cpu else (0.4, 1.0)
    config.augment.flip = 0.5
    config.augment.erasing = 0.0 if cpu else 0.25

    config.model.encoder = "192x6x3/8" if cpu else "384x12x6/4"
    config.model.pool = "mean"  # learns faster than a cls token in short runs
    config.model.drop_path = 0.0 if cpu else 0.1

    config.tasks.expression = recipe.task("classification", label="expression", label_smoothing=0.1)
    config.optim.lr = 3e-4  # at 1e-3 the plain supervised run stays on its first plateau
    config.optim.warmup_epochs = 1.0 if cpu else 10.0
    config.optim.clip = 1.0
    config.optim.ema = 0.998 if cpu else 0.9998
    config.checkpoint.best = "expression/accuracy"
    return config
