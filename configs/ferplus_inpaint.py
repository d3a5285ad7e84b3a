"""FER+ with inpainting and a perceptual loss, from the picture that the expression is read from.

Paper: HMTL, arXiv 2105.06421 ("in-painting-pl"). Holes, decoder, losses, weight and stream are not
published: ours (pretext/inpaint.py).

    python -m hmtl_jax.main --config=configs/ferplus_inpaint.py:cpu --workdir=runs/ferplus_inpaint

Expected: on AffectNet HMTL gains 1.38 points with all data and 2.90 with 20 %. Ours on 20 % of FER+
stand in experiments/README.md.

Data, encoder and schedule are those of ferplus_supervised.py. `--config.stream=clean` reads the
expressions from the whole picture instead, at the cost of a second pass.
"""

from configs import ferplus_supervised
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    config = ferplus_supervised.get_config(arg)

    config.pretexts.inpaint = recipe.pretext_task("inpaint", weight=0.3)
    config.stream = "one_stream"
    return config
