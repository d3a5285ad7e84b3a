"""FER+ with a 2 × 2 puzzle beside the expression, which is read from the whole picture.

Paper: HMTL, arXiv 2105.06421, whose puzzle has 3 × 3 tiles and whose one-stream form reads the
expression from the puzzled picture; clean stream, tiles, heads that read their places and the
weight that falls to 0 are ours.

    python -m hmtl_jax.main --config=configs/ferplus_puzzle.py:cpu --workdir=runs/ferplus_puzzle

Expected: on AffectNet HMTL gains 0.75 points for EfficientNet-B0. Ours, with all labels, a smaller
CNN and thirty epochs, one seed: 83.1 % on test and 83.3 on validation, 82.5 and 84.0 supervised,
which differ by less than faces vary; `python -m experiments.tables ferplus_100_cpu`. Where labels
are few it helps: ferplus_few_labels.py.

Data, encoder and schedule are those of ferplus_supervised.py. The paper's form:
`--config.stream=one_stream --config.pretexts.puzzle.tiles=3 --config.pretexts.puzzle.weight=0.3`,
`--config.pretexts.puzzle.heads=pooled` and `--config.pretexts.puzzle.weight_schedule=constant`.
"""

from configs import ferplus_supervised
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    config = ferplus_supervised.get_config(arg)
    config.pretexts.puzzle = recipe.pretext_task(
        "puzzle", tiles=2, heads="places", weight=0.25, weight_schedule="linear", final_weight=0.0
    )
    return config
