"""CelebA with a masked auto-encoder beside it that rebuilds local directional patterns.

Paper: L-SSAT, arXiv 2409.19582; λ and mask ratio are SSAT's (arXiv 2310.20704).

    python -m hmtl_jax.main --config=configs/celeba_mae_ldp.py --workdir=runs/celeba_mae_ldp

Expected: L-SSAT reports an average accuracy of .87 under its own protocol, lower than the usual
mean accuracy of 91.3 %. Not run on the real data here.

Everything else as celeba_supervised.py.
L-SSAT rebuilds the code of each pixel, `--config.pretexts.mae.targets=ldp`, of which
nothing can be foreseen on FER+; how often each of its comparisons holds in a patch is ours
(experiments/README.md).
"""

from configs import celeba_supervised
from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = celeba_supervised.get_config()
    recipe.rebuild(config, "ldp_bits_patch")
    return config
