"""FER+ with a masked auto-encoder beside it that rebuilds local binary patterns.

Paper: L-SSAT, arXiv 2409.19582; λ and the mask ratio are SSAT's (arXiv 2310.20704).

    python -m hmtl_jax.main --config=configs/ferplus_mae_lbp.py:cpu --workdir=runs/ferplus_mae_lbp

Expected: not run to its end with the CNN and the target of today. With codes as the target a
ViT-192x6x3/8 had 71.2 % on test, against 70.9 % supervised (ours, one seed each, docs/results), and
a CNN with 20 % of the labels 74.9, against 75.6 (experiments/ferplus_20_cpu.md).

L-SSAT rebuilds the code of each pixel, `--config.pretexts.mae.targets=lbp`, of which next to
nothing can be foreseen: after 1,000 steps of a small ViT its skill is 0.02, that of `lbp_bits_4`
0.12, of `lbp_bits_patch`, how often each comparison holds in a patch, 0.21, of pixels 0.51
(experiments/ferplus_targets_cpu.md). The last of the textures is ours and stands here.

Data, encoder and schedule are those of ferplus_supervised.py.
"""

from configs import ferplus_supervised
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    config = ferplus_supervised.get_config(arg)
    recipe.rebuild(config, "lbp_bits_patch")
    return config
