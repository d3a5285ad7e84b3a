"""FaceForensics++ with the auxiliary view's features fused into the classifier's.

Paper: Fusion-SSAT, arXiv 2601.00789. Its operator is not published: concat, sum and cross_attention
are ours (models/heads.py).

    python -m hmtl_jax.main --config=configs/ffpp_fusion.py --workdir=runs/ffpp_fusion

Expected: no accuracy that we could read. The masked view stays part of the deployed model, which
then costs about 1.25 × the supervised one; training prints the ratio. Not run on the real data
here.

Everything else as ffpp_mae_ldp.py.
"""

from configs import ffpp_mae_ldp


def get_config():
    """The recipe; it takes no argument."""
    config = ffpp_mae_ldp.get_config()
    config.model.fusion = "concat"
    return config
