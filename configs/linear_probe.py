r"""Linear classifiers and nearest neighbours on the frozen features of runs, or of files.

Paper: linear probing as in MAE (He 2022), with a logistic regression instead of SGD (ours);
neighbours vote as in Wu 2018.

    python -m hmtl_jax.main --config=configs/linear_probe.py --config.init_from=runs/NAME
    python -m hmtl_jax.main --config=configs/linear_probe.py \
        --config.init_from=vit_small.safetensors --config.model.encoder=S/16 \
        --config.data.name=ferplus --config.data.data_dir=data \
        --config.probe.label=expression --workdir=runs/probe
    python -m hmtl_jax.main --config=configs/linear_probe.py --workdir=runs/probe \
        --config.init_from=alone=runs/supervised,joint=runs/joint --config.data.name=ferplus

Expected: above the random encoder beside it, by as much as the run has learned.

What is read is what heads read; --config.probe.stage=stage2, block05, tokens … takes another stage
of the encoder, its mean over places or, with --config.probe.pool=cls, its cls token. Strength is
chosen on validation along a path, then train and validation are fitted together, all in JAX.

Encoder, image size and data are the run's own, unless data.name names another set; all labels of
train are read, whatever share the run had, unless data.subset says otherwise. Features are
extracted once, without augmentation, under the moving average where the run kept one, and kept
beside the report, which lies in runs/NAME/probe without a --workdir.
"""

from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = recipe.defaults()
    config.job = "probe"
    config.batch_size = 256
    config.data.data_dir = ""  # the run's
    return config
