"""Self-supervised tasks: each is a view of the batch, a target, a decoder and a per-example loss.

A pretext is a frozen dataclass with `views(rngs_b, images) -> ((View, target), ...)`,
`decoder_spec()` and, for each of its views, `losses(output, target, features) -> {part: [B]}`,
where `features` maps images in [0, 1] to the stages of a frozen network: the moving average of the
encoder (`needs_average`), or the imported one that `network` names, as (encoder, file).
`reads` says what that output is: of its decoder on its `own` view; of its decoder on the `clean`
one, in whose place the view only tells the decoder where to look; or of the tasks' `heads` on both,
by task. `skill(output, target, mask_b) -> {part: errors}` says how much of its task is done (see
skill.py), `unlearned` what to try where it is nothing. `columns(images, view, target, output)` is
its picture. FILLED are its fields that the recipe fills from its encoder: image_size, patch,
drops_tokens. LIMITS is what each of its settings may be (see limits.py); `sizes_of_views`, what the
encoder has to read. To add one, write its file and its line below.
"""

from hmtl_jax.pretext.drloc import DrLoc
from hmtl_jax.pretext.inpaint import Inpaint
from hmtl_jax.pretext.mae import Mae
from hmtl_jax.pretext.masksub import MaskSub
from hmtl_jax.pretext.puzzle import Puzzle
from hmtl_jax.pretext.rotation import Rotation

PRETEXTS = {
    "drloc": DrLoc,
    "inpaint": Inpaint,
    "mae": Mae,
    "masksub": MaskSub,
    "puzzle": Puzzle,
    "rotation": Rotation,
}
