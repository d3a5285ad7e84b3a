"""AffectNet, eight expressions, supervised only: ViT-S/16 at 224 px with SSAT's training recipe.

Paper: the supervised baselines of SSAT (arXiv 2310.20704: augmentation and schedule) and HMTL
(arXiv 2105.06421: class weights).

    python -m hmtl_jax.prepare affectnet --source AFFECTNET --data_dir data
    python -m hmtl_jax.main --config=configs/affectnet_supervised.py --workdir=runs/affectnet_sl

Expected, from HMTL: 60.34 % for its EfficientNet-B0, which `:efficientnet` puts in the ViT's place.
HMTL's optimizer and augmentation are not settled in what we could read, so `:efficientnet` has
those of SSAT too (ours). Not run on the real data here.

For 8 GPUs or a TPU v4-8, from random weights.
"""

from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` or `efficientnet`."""
    (efficientnet,) = recipe.arguments(arg, "efficientnet")
    config = recipe.defaults()
    config.batch_size = 512
    config.epochs = 100.0

    config.data.name = "affectnet"
    config.data.image_size = 224
    config.data.decode_size = 256
    config.data.workers = 8
    config.augment.crop_scale = (0.08, 1.0)
    config.augment.flip = 0.5
    config.augment.randaugment = (2, 9)
    config.augment.erasing = 0.25

    config.model.encoder = "efficientnet_b0" if efficientnet else "S/16"
    config.tasks.expression = recipe.task(
        "classification", label="expression", class_weights="balanced", label_smoothing=0.1
    )
    config.optim.lr = 1e-3 * config.batch_size / 256
    config.optim.warmup_epochs = 5.0
    config.checkpoint.best = "expression/balanced_accuracy"
    return config
