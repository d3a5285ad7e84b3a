"""FairFace: gender, age group and race from one encoder, supervised only, from scratch.

Paper: the data set is Karkkainen 2021. Encoder, schedule and augmentation are ours.

    python -m hmtl_jax.prepare fairface --source fairface96.zip --data_dir data
    python -m hmtl_jax.main --config=configs/fairface_supervised.py:cpu --workdir=runs/fairface

Expected: the authors' ResNet-34, at 224 px and pre-trained, is reported at about 94 % for gender.
`:cpu`, from scratch on 10,793 of the 86,744 faces: test gender 87.1 %, race 59.8 (of seven), age
group 50.2 (of nine), one seed (ours). Without `:cpu` it has not been run to its end here.

A CNN of 1.9 million parameters at 96 px. `:cpu` is one of 0.48 million at 64 px: half a million
faces, fifty times the 10,800 of the small copy.
"""

from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    (cpu,) = recipe.arguments(arg, "cpu")
    config = recipe.defaults()
    config.batch_size = 128 if cpu else 256
    if cpu:
        config.steps = 4000
        config.eval_every = 400
    else:
        config.epochs = 60.0
    config.log_every = 50

    config.data.name = "fairface"
    config.data.image_size = 64 if cpu else 96
    config.data.cache = "host" if cpu else "device"
    config.data.stratify = "race"
    config.augment.flip = 0.5
    config.augment.rotation = 15.0
    config.augment.zoom = 0.2
    config.augment.shift = 0.1
    config.augment.color_jitter = (0.25, 0.25, 0.25, 0.0)

    config.model.encoder = "cnn32" if cpu else "cnn64"
    if cpu:
        config.model.dtype = "float32"
    config.model.head_dropout = 0.2
    for label in ("gender", "age_group", "race"):
        config.tasks[label] = recipe.task("classification", label=label, label_smoothing=0.1)
    config.optim.lr = 4e-3
    config.optim.warmup_steps = 400
    config.optim.weight_decay = 0.05
    config.optim.clip = 1.0
    config.optim.ema = 0.998
    config.checkpoint.best = "gender/accuracy"
    return config
