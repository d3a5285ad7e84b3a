"""Self-supervised tasks: each is a view of the batch, a target, a decoder and a per-example loss.

A pretext is a frozen dataclass with `view(rngs_b, images) -> (View, target)`, `decoder_spec()` and
`losses(outputs, target) -> {part: [B]}`. To add one, write its file and its line below.
"""

from hmtl_jax.pretext.mae import Mae

PRETEXTS = {"mae": Mae}
