"""Gender on FairFace at 96 px, supervised only: the baseline of gender_puzzle.py.

Paper: the data set is Karkkainen 2021. Encoder, schedule and augmentation are ours.

    python -m hmtl_jax.prepare fairface --source fairface96.zip --data_dir data
    python -m hmtl_jax.main --config=configs/gender_supervised.py:cpu --workdir=runs/gender_sl

Expected: near that of fairface_supervised.py. Not run to its end with the CNN of today.

Everything else as fairface_supervised.py.
"""

from configs import fairface_supervised


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    config = fairface_supervised.get_config(arg)
    del config.tasks.age_group, config.tasks.race
    return config
