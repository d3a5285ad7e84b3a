"""CelebA with a masked auto-encoder beside it that rebuilds local directional patterns.

Paper: L-SSAT, arXiv 2409.19582, which reports average accuracies of .87 on CelebA and .94 on
FaceForensics++ under its own protocol; λ and mask ratio are SSAT's.

    python -m hmtl_jax.main --config=configs/celeba_mae_ldp.py --workdir=runs/celeba_mae_ldp

Everything else as celeba_supervised.py. Not run on the real data here.
"""

from configs import celeba_supervised
from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = celeba_supervised.get_config()
    config.pretexts.mae = recipe.pretext_task("mae", targets=("ldp",), mask_ratio=0.75)
    config.weighting.name = "ssat"
    config.weighting.lam = 0.1
    return config
