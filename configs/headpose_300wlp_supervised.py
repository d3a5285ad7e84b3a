r"""Head pose: 300W-LP → AFLW2000, supervised only, 6-D rotations with the geodesic loss.

Paper: the loss is that of 6DRepNet (Hempel 2022). The encoder of HMTL's companion (arXiv
2108.04893) is not settled in what we could read: ours.

    python -m hmtl_jax.main --config=configs/headpose_300wlp_supervised.py --workdir=runs/pose_sl

Expected: 6DRepNet reports MAE 3.97 on AFLW2000, with RepVGG and ImageNet weights; from random
weights it will be more. Not run on the real data here.

Data: `python -m hmtl_jax.prepare 300w_lp --source DIR_OR_ZIP --data_dir data`, whose test split is
of the same set; the figure that others report is of another one, evaluated after training:

    python -m hmtl_jax.prepare aflw2000 --source DIR_OR_ZIP --data_dir data
    python -m hmtl_jax.evaluate runs/pose_sl --data aflw2000
"""

from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = recipe.defaults()
    config.batch_size = 128
    config.epochs = 30.0

    config.data.name = "300w_lp"
    config.data.image_size = 224
    config.data.decode_size = 240
    config.data.workers = 8
    config.augment.crop_scale = (0.8, 1.0)
    config.augment.crop_ratio = (1.0, 1.0)  # another ratio would falsify the angles
    config.augment.flip = 0.5
    config.augment.color_jitter = (0.2, 0.2, 0.2, 0.0)

    config.model.encoder = "resnet50"
    config.tasks.pose = recipe.task("pose", labels=("pose",))
    config.optim.lr = 3e-4
    config.optim.warmup_epochs = 1.0
    config.checkpoint.best = "pose/mae"
    return config
