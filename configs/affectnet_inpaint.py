"""AffectNet with inpainting and a perceptual loss beside it.

Paper: HMTL, arXiv 2105.06421 ("in-painting-pl"). Holes, decoder and losses are not published: ours
(pretext/inpaint.py), and so is the weight 0.3.

    python -m hmtl_jax.main --config=configs/affectnet_inpaint.py --workdir=runs/affectnet_inpaint
    … --config.data.subset=0.2

Expected, from the paper, EfficientNet-B0: 61.72 % on validation against 60.34 % supervised; with
20 % of train 55.36 % against 52.46 %. Not run on the real data here.

From random weights, as HMTL trains. Compare it to the supervised recipe under the same average,
`affectnet_supervised.py:efficientnet --config.optim.ema=0.9998`.
"""

from configs import affectnet_supervised
from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = affectnet_supervised.get_config("efficientnet")

    config.pretexts.inpaint = recipe.pretext_task("inpaint", weight=0.3)
    config.optim.ema = 0.9998  # the perceptual loss compares features under the average
    return config
