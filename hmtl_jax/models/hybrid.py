"""The hybrid model: one encoder for every view, a head a task, a decoder a pretext."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax.images import normalise
from hmtl_jax.view import View, owner


class Hybrid(nn.Module):
    """Named views in, outputs by view and name out.

    heads: a module a task. reads: for each task the owners of the views it reads in training (the
    clean view it reads whenever there is one). decoders: a module a pretext; each reads that
    pretext's views, NAME or NAME/0, NAME/1 …. on_clean: pretexts whose decoder reads the clean
    view instead, and whose own are not encoded. compared: for each task the owners of further
    views that its head answers to, without being trained there. fuse: the view whose stages every
    head gets beside those of its own view, or "". decode: run the decoders too, and what is
    compared; evaluation never does.
    """

    encoder: nn.Module
    heads: Mapping[str, nn.Module]
    decoders: Mapping[str, nn.Module]
    reads: Mapping[str, tuple[str, ...]]
    on_clean: tuple[str, ...] = ()
    compared: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    fuse: str = ""

    def __call__(
        self, views: Mapping[str, View], *, train: bool = False, decode: bool = True
    ) -> dict[str, dict[str, jax.Array]]:
        own = {view: of for view, of in views.items() if owner(view) not in self.on_clean}
        stages = self.encode(own, train=train)
        fused = [view for view in stages if owner(view) == self.fuse][:1]
        beside = [stages[view] for view in fused]
        outputs: dict[str, dict[str, jax.Array]] = {}
        for view, found in stages.items():
            whose = owner(view)
            outputs[view] = {
                name: head(found, *beside, train=train)
                for name, head in self.heads.items()
                if whose in ("clean", *self.reads[name])
                or (decode and whose in self.compared.get(name, ()))
            }
            if decode and whose in self.decoders:
                decoder = self.decoders[whose]
                outputs[view][whose] = decoder(found, views[view], train=train)
        for view in views:  # in their order, which is the same on every process
            if decode and view not in stages:
                name = owner(view)
                read = self.decoders[name](stages["clean"], views[view], train=train)
                outputs[view] = {name: read}
        return outputs

    def features(self, images_bhwc: jax.Array) -> dict[str, jax.Array]:
        """Stages of images [B, H, W, 3] in [0, 1], as in evaluation; heads and decoders unread."""
        return self.encoder(normalise(images_bhwc), None, train=False)

    def answer(self, task: str, stages: dict[str, jax.Array]) -> jax.Array:
        """What the head of a task makes of stages, as in evaluation, float32 [B, outputs]."""
        return self.heads[task](stages, train=False)

    def encode(self, views: Mapping[str, View], *, train: bool = False) -> dict[str, dict]:
        """Named views → named stages; views of equal size share one call of the encoder."""
        groups: dict[tuple, list[str]] = {}
        for name, view in views.items():
            kept = None if view.keep is None else view.keep.shape[1:]
            groups.setdefault((view.images.shape[1:], kept), []).append(name)
        stages = {}
        for names in groups.values():
            joined = jax.tree.map(interleaved, *[views[name] for name in names])
            out = self.encoder(normalise(joined.images), joined.keep, train=train)
            counts = [views[name].images.shape[0] for name in names]
            parts = {key: separated(rows, counts) for key, rows in out.items()}
            for index, name in enumerate(names):
                stages[name] = {key: part[index] for key, part in parts.items()}
        return stages


def interleaved(*rows_bx: jax.Array) -> jax.Array:
    """Several [B, …], each with its own B → all their rows, [ΣB, …].

    The first rows of each, then the next ones, and so on: of each as many at a time as its part of
    the whole is. One after the other instead, each device would have to fetch the whole of a
    sharded batch.
    """
    units = _units([rows.shape[0] for rows in rows_bx])
    parts = [rows.reshape(units, -1, *rows.shape[1:]) for rows in rows_bx]
    return jnp.concatenate(parts, axis=1).reshape(-1, *rows_bx[0].shape[1:])


def separated(rows_nx: jax.Array, counts: Sequence[int]) -> list[jax.Array]:
    """Undoes `interleaved`; counts: the B of each."""
    units, rest = _units(counts), rows_nx.shape[1:]
    ends = np.cumsum([count // units for count in counts])[:-1]
    parts = jnp.split(rows_nx.reshape(units, -1, *rest), ends, axis=1)
    return [part.reshape(-1, *rest) for part in parts]


def _units(counts: Sequence[int]) -> int:
    """Into how many equal parts all of them can be cut at most."""
    if all(count == counts[0] for count in counts):
        return counts[0]  # an exported program's own, which is no number yet
    return math.gcd(*counts)
