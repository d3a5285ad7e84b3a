"""FairFace with a masked auto-encoder beside the three tasks that rebuilds local binary patterns.

Paper: L-SSAT, arXiv 2409.19582 (on other data); weights are SSAT's (arXiv 2310.20704).

    python -m hmtl_jax.main --config=configs/fairface_mae_lbp.py:cpu --workdir=runs/fairface_mae_lbp

Expected: none published. Not run to its end here.

Everything else as fairface_supervised.py.
"""

from configs import fairface_supervised
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    config = fairface_supervised.get_config(arg)
    config.pretexts.mae = recipe.pretext_task("mae", targets=("lbp",), mask_ratio=0.75)
    config.weighting.name = "ssat"
    config.weighting.lam = 0.1
    return config
