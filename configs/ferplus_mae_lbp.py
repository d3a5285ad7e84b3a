"""FER+ with a masked auto-encoder beside it that rebuilds local binary patterns.

Paper: L-SSAT, arXiv 2409.19582; λ and the mask ratio are SSAT's (arXiv 2310.20704).

    python -m hmtl_jax.main --config=configs/ferplus_mae_lbp.py:cpu --workdir=runs/ferplus_mae_lbp

Expected: not run to its end with the CNN of today. A ViT-192x6x3/8 had 71.2 % on test, against
70.9 % supervised (ours, one seed each, docs/results; 20 % of the labels:
experiments/README.md). Little of an LBP code can be foreseen (textures/forms.py): after 1,000 steps
of a small ViT its skill is 0.02, that of `--config.pretexts.mae.targets=lbp_bits_4` 0.12, of
`lbp_bits_patch` 0.21, of pixels 0.51 (experiments/ferplus_targets_cpu.md).

Data, encoder and schedule are those of ferplus_supervised.py.
"""

from configs import ferplus_supervised
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    config = ferplus_supervised.get_config(arg)
    config.pretexts.mae = recipe.pretext_task("mae", targets=("lbp",), mask_ratio=0.75)
    config.weighting.name = "ssat"
    config.weighting.lam = 0.1
    return config
