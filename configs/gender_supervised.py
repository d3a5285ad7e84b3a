"""Gender on FairFace at 96 px, supervised only: the baseline of gender_puzzle.py.

Paper: the data set is Karkkainen 2021. Encoder, schedule and augmentation are ours.

    python -m hmtl_jax.prepare fairface --source fairface96.zip --data_dir data
    python -m hmtl_jax.main --config=configs/gender_supervised.py:cpu --workdir=runs/gender_sl

Expected: the authors' model, larger and at 224 px, is reported at about 94 %. Ours, in five epochs,
in experiments/fairface_gender_cpu.md.

Everything else as fairface_supervised.py.
"""

from configs import fairface_supervised


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    config = fairface_supervised.get_config(arg)
    del config.tasks.age_group, config.tasks.race
    return config
