"""FairFace, 96 px: gender, age group and race from one encoder, supervised only.

Paper: the data set is Karkkainen 2021. Encoder, schedule and augmentation are ours.

    python -m hmtl_jax.prepare fairface --source fairface96.zip --data_dir data
    python -m hmtl_jax.main --config=configs/fairface_supervised.py:cpu --workdir=runs/fairface

Expected: the authors' model, larger and at 224 px, is reported at about 94 % for gender. This
recipe has not been run to its end here; gender_supervised.py has.

`:cpu` is a smaller encoder for two cores.
"""

from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    (cpu,) = recipe.arguments(arg, "cpu")
    config = recipe.defaults()
    config.batch_size = 64 if cpu else 256
    config.epochs = 10.0 if cpu else 60.0
    config.log_every = 100

    config.data.name = "fairface"
    config.data.image_size = 96
    config.augment.crop_scale = (0.6, 1.0)
    config.augment.flip = 0.5

    config.model.encoder = "192x6x3/16" if cpu else "S/8"
    config.model.pool = "mean"
    for label in ("gender", "age_group", "race"):
        config.tasks[label] = recipe.task("classification", label=label, label_smoothing=0.1)
    config.optim.lr = 3e-4
    config.optim.warmup_epochs = 1.0 if cpu else 5.0
    config.optim.clip = 1.0
    config.optim.ema = 0.998 if cpu else 0.9998
    config.checkpoint.best = "gender/accuracy"
    return config
