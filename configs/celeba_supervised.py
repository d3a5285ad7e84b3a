"""CelebA, 40 attributes, supervised only: ViT-S/16 at 224 px, SSAT's schedule.

Paper: the data set is Liu 2015; the schedule is that of SSAT, arXiv 2310.20704.

    python -m hmtl_jax.main --config=configs/celeba_supervised.py --workdir=runs/celeba_sl

Expected: about 91.3 % mean accuracy, the usual number of solid baselines; FaceXFormer reports
91.83, FaRL 92.06. Not run on the real data here.

Data: `python -m hmtl_jax.prepare celeba --source DIR --data_dir data`.
"""

from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = recipe.defaults()
    config.batch_size = 256
    config.epochs = 50.0

    config.data.name = "celeba"
    config.data.image_size = 224
    config.data.workers = 8
    config.augment.crop_scale = (0.5, 1.0)
    config.augment.flip = 0.5

    config.model.encoder = "S/16"
    config.tasks.attributes = recipe.task("multilabel", labels=("attributes",))
    config.optim.lr = 1e-3 * config.batch_size / 256
    config.checkpoint.best = "attributes/accuracy"
    return config
