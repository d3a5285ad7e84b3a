"""Self-supervised tasks: each is a view of the batch, a target, a decoder and a per-example loss.

A pretext is a frozen dataclass with `views(rngs_b, images) -> ((View, target), ...)`,
`decoder_spec()` and, for each of its views, `losses(output, target, features) -> {part: [B]}`,
where `features` maps images in [0, 1] to the stages of a frozen network (the moving average of the
encoder, or the one named by its field `perceptual_encoder`). The recipe fills its fields
image_size, patch and drops_tokens. To add one, write its file and its line below.
"""

from hmtl_jax.pretext.inpaint import Inpaint
from hmtl_jax.pretext.mae import Mae
from hmtl_jax.pretext.puzzle import Puzzle
from hmtl_jax.pretext.rotation import Rotation

PRETEXTS = {"inpaint": Inpaint, "mae": Mae, "puzzle": Puzzle, "rotation": Rotation}
