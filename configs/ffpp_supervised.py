"""FaceForensics++ (Rossler 2019), c23: real or fake from one frame, supervised only, ViT-S/16.

    python -m hmtl_jax.main --config=configs/ffpp_supervised.py --workdir=runs/ffpp_sl

Frame AUC of others: .964 (Xception), .9705 (UCF). Reads a prepared set `ffpp` with the label
`fake`, frames of face boxes × 1.3, no identity across splits. Not run on the real data here.
"""

from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = recipe.defaults()
    config.batch_size = 256
    config.epochs = 30.0

    config.data.name = "ffpp"
    config.data.image_size = 224
    config.data.workers = 8
    config.augment.crop_scale = (0.7, 1.0)
    config.augment.flip = 0.5

    config.model.encoder = "S/16"
    config.tasks.fake = recipe.task("binary", label="fake")
    config.optim.lr = 1e-3 * config.batch_size / 256
    config.checkpoint.best = "fake/auc"
    return config
