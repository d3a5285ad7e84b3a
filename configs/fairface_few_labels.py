r"""FairFace as if one face in ten had labels: gender, age group and race, a puzzle of all faces.

Paper: HMTL, arXiv 2105.06421; the data set is Karkkainen 2021. Encoder, size and budget are ours.

    python -m hmtl_jax.prepare fairface --source fairface96.zip --data_dir data
    python -m hmtl_jax.main --config=configs/fairface_few_labels.py:cpu --workdir=runs/few
    python -m hmtl_jax.main --config=configs/fairface_few_labels.py:cpu,supervised \
        --workdir=runs/few_supervised

Expected (ours, `:cpu`, three seeds): test race 44.5 ± 0.5 % with the puzzle and 39.8 ± 0.1
supervised, age group 38.5 ± 0.7 and 35.3 ± 1.0, gender 77.0 ± 0.6 and 74.5 ± 0.4; `python -m
experiments.tables fairface_10_cpu`. Who is served worst: `python -m hmtl_jax.fairness runs/few --by
race,gender`. There the heads read the puzzle's places, which is ours.

`supervised` sees the faces with labels alone, for as many steps of as many of them: the others have
as many faces without labels beside them in each batch. `pretrain` solves the puzzle alone;
`finetune` then starts from its workdir, with `--config.init_from`. `masksub` in place of the puzzle
holds a masked view against what is sure of the whole face.
"""

from configs import fairface_supervised
from hmtl_jax import recipe

LABELLED = 0.1


def get_config(arg: str = ""):
    """arg: `cpu`, and `supervised`, `pretrain`, `finetune` or `masksub`, with a comma."""
    cpu, supervised, pretrain, finetune, masksub = recipe.arguments(
        arg, "cpu", "supervised", "pretrain", "finetune", "masksub"
    )
    config = fairface_supervised.get_config("cpu" if cpu else "")
    config.batch_size = 64 if cpu else 128
    config.steps = 1500 if cpu else 3000
    config.eval_every = config.steps // 6
    if cpu:
        config.model.encoder = "cnn24"
    config.optim.lr = 3e-3
    config.optim.warmup_steps = 190
    config.optim.ema = 0.995
    if supervised or finetune:
        config.data.subset = LABELLED
        return config
    if masksub:
        config.pretexts.masksub = recipe.pretext_task("masksub", threshold=0.8)
    else:
        config.pretexts.puzzle = recipe.pretext_task("puzzle", tiles=2)
    if pretrain:
        recipe.pretrain_only(config)
        return config
    if not masksub:
        if cpu:
            config.pretexts.puzzle.update(heads="places", weight=0.25)
        config.pretexts.puzzle.weight_schedule = "linear"  # to 0: the last steps are the tasks'
    recipe.few_labels(config, LABELLED)
    return config
