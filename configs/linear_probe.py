r"""A linear classifier and nearest neighbours on the frozen features of a run, or of a file.

    python -m hmtl_jax.main --config=configs/linear_probe.py --config.init_from=runs/NAME
    python -m hmtl_jax.main --config=configs/linear_probe.py \
        --config.init_from=vit_small.safetensors --config.model.encoder=S/16 \
        --config.data.name=ferplus --config.data.data_dir=data \
        --config.probe.label=expression --workdir=runs/probe

Encoder, image size and data are the run's own, unless data.name names another set; features are
extracted once, without augmentation, under the moving average where the run kept one. Reports the
test metric beside that of a random encoder, in runs/NAME/probe without a --workdir.
"""

from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = recipe.defaults()
    config.job = "probe"
    config.batch_size = 256
    config.data.data_dir = ""  # the run's
    return config
