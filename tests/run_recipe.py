"""The recipe of the tests' runs: rendered faces of 32 px, a two-layer ViT, three short epochs."""

from hmtl_jax import recipe


def get_config():
    config = recipe.defaults()
    config.batch_size = 16
    config.epochs = 3.0
    config.log_every = 2

    config.data.name = "synthetic"
    config.data.image_size = 32
    config.data.threads = 1
    config.augment.flip = 0.5

    config.model.encoder = "16x2x2/8"
    config.model.drop_path = 0.1
    config.model.dtype = "float32"
    config.tasks.expression = recipe.task("classification", label="expression")
    config.pretexts.mae = recipe.pretext_task(
        "mae", targets=("rgb",), decoder_dim=16, decoder_depth=1, decoder_heads=2
    )
    config.weighting.name = "ssat"

    config.optim.warmup_epochs = 1.0
    config.optim.ema = 0.9
    config.checkpoint.best = "expression/accuracy"
    return config
