"""What a forward pass needs that is no array: the model, tasks and pretexts, and their views."""

import dataclasses
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hmtl_jax import textures
from hmtl_jax.view import View, owner


@dataclasses.dataclass(frozen=True)
class Program:
    """Made of a recipe and the tasks that fit its data, by build.py.

    model: a Linen module that maps named views to outputs. image_size: side of what it reads.
    networks: by pretext, the imported encoder whose features it compares. input: what the clean
    view shows: `rgb` or a texture. mirror: whether predictions are means over a picture and its
    mirror image.
    """

    model: Any
    tasks: Mapping[str, Any]
    pretexts: Mapping[str, Any]
    image_size: int
    networks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    input: str = "rgb"
    mirror: bool = False

    @property
    def needs_clean(self) -> bool:
        """Whether a task or a pretext reads the clean view in training."""
        tasks = any("clean" in reads for reads in self.model.reads.values())
        return tasks or not self._pretexts_read_their_own

    @property
    def tasks_alone_read_clean(self) -> bool:
        """Whether nothing but a task reads the clean view in training: no row without labels."""
        return self._pretexts_read_their_own and not self.model.fuse

    @property
    def _pretexts_read_their_own(self) -> bool:
        return all(pretext.reads == "own" for pretext in self.pretexts.values())

    def views_of_one(self, rng: jax.Array) -> dict[str, View]:
        """Every view of one black image of the recipe's size."""
        size, keys = self.image_size, dict.fromkeys(self.pretexts, rng[None])
        return make_views(self, jnp.zeros((1, size, size, 3)), keys)[0]

    def init_model(self, rng: jax.Array) -> Any:
        """Variables for one image of the recipe's size, every view included."""
        views = self.views_of_one(rng)
        return self.model.init({"params": rng, "dropout": rng}, views, train=False)

    def init_networks(self, rng: jax.Array) -> dict[str, Any]:
        """Variables of the imported networks, in the shapes that their files must fill."""
        image = jnp.zeros((1, self.image_size, self.image_size, 3))
        return {
            name: net.init(rng, image, None, train=False) for name, net in self.networks.items()
        }


def streams(seed: jax.Array | int, step: jax.Array | int, *names: str) -> list[jax.Array]:
    """One key a name, from (seed, step) alone; a new name changes no other stream."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return [jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names]


@jax.named_scope("views")
def make_views(program: Program, images: jax.Array, keys: Mapping[str, jax.Array]):
    """Named views: `clean`, and each pretext's as NAME, or NAME/0, NAME/1 …; and their targets.

    keys: one key an example for each pretext whose views are wanted.
    """
    views = {"clean": View(textures.as_input(program.input, images))}
    targets = {}
    for name in keys:
        pairs = program.pretexts[name].views(keys[name], images)
        for index, (view, target) in enumerate(pairs):
            key = name if len(pairs) == 1 else f"{name}/{index}"
            views[key], targets[key] = view, target
    return views, targets


def answers(program: Program, outputs: Mapping, views: Iterable[str]) -> dict[str, Any]:
    """What the model says of each pretext's view, by view.

    Of a pretext that compares heads, by task: the answer on its view, and on the clean one.
    """
    found = {}
    for view in views:
        name = owner(view)
        if program.pretexts[name].reads == "heads":
            tasks = [task for task, of in program.model.compared.items() if name in of]
            found[view] = {task: (outputs[view][task], outputs["clean"][task]) for task in tasks}
        else:
            found[view] = outputs[view][name]
    return found


def skills(
    program: Program, outputs: Mapping, targets: Mapping, masks: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Errors of each pretext's answers and of the best constant one, float32 [B, 2], by leaf.

    outputs, targets: of the pretexts, by view. masks: by pretext, 1 for the examples that there
    are, float32 [B]. See pretext/skill.py.
    """
    found = {}
    for view, target in targets.items():
        name = owner(view)
        pretext, mask_b = program.pretexts[name], masks[name]
        parts = pretext.skill(outputs[view], target, mask_b)
        for part, errors in parts.items():
            leaf = view if len(parts) == 1 else f"{view}/{part}"
            found[leaf] = jnp.stack(errors, axis=1) * mask_b[:, None]
    return jax.lax.stop_gradient(found)
