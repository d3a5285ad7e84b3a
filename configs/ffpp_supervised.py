"""FaceForensics++, c23: real or fake from one frame, supervised only, ViT-S/16.

Paper: the data set is Rossler 2019; the schedule is that of SSAT, arXiv 2310.20704.

    python -m hmtl_jax.main --config=configs/ffpp_supervised.py --workdir=runs/ffpp_sl

Expected: frame AUC .964 of Xception and .9705 of UCF, both with other encoders than this one. Not
run on the real data here.

Data, with the face boxes of a detector (`prepare faceforensics --help`):

    python -m hmtl_jax.prepare faceforensics --source DIR --detector yunet.onnx --data_dir data
"""

from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = recipe.defaults()
    config.batch_size = 256
    config.epochs = 30.0

    config.data.name = "faceforensics"
    config.data.image_size = 224
    config.data.workers = 8
    config.augment.crop_scale = (0.7, 1.0)
    config.augment.flip = 0.5

    config.model.encoder = "S/16"
    config.tasks.fake = recipe.task("binary", label="fake")
    config.optim.lr = 1e-3 * config.batch_size / 256
    config.checkpoint.best = "fake/auc"
    return config
