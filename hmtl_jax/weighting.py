"""How the losses of tasks and pretexts combine into one total.

Every weighting answers one question at each step: what does each loss weigh? The gradient of the
total is that of Σ weight × loss with the weights held constant, which is exact for all of them,
the geometric mean included. What a weighting learns or remembers is carried in the train state.
A loss that no example of the batch has is 0 and not `present`: no weighting takes it for a loss
that has been driven to 0 (ours). To add one, write its class and its line at the foot.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from hmtl_jax import limits
from hmtl_jax.errors import UserError

TINY = 1e-12  # a loss of exactly 0 must not divide

Losses = Mapping[str, jax.Array]  # float32 [] by name
Present = Mapping[str, jax.Array]  # bool [] by name


@dataclasses.dataclass(frozen=True)
class Fixed:
    """The recipe's weights as they are, each a schedule: step → weight. Base of all others.

    from_losses: whether the weights depend on the losses of the same step. separate: whether the
    gradient of each loss is wanted on its own, which costs one backward pass a loss.
    """

    base: Mapping[str, Callable]
    from_losses: ClassVar[bool] = False
    separate: ClassVar[bool] = False

    def init(self) -> Any:
        """What is carried, at step 0: a tree of float32."""
        return {}

    def base_weights(self, step: jax.Array) -> dict[str, jax.Array]:
        """The recipe's weights at a step, float32 []."""
        return {name: jnp.asarray(at(step), jnp.float32) for name, at in self.base.items()}

    def weights(
        self, carried: Any, losses: Losses, present: Present, step: jax.Array
    ) -> dict[str, jax.Array]:
        """One weight a loss, float32 []."""
        del carried, losses, present
        return self.base_weights(step)

    def offset(self, carried: Any, step: jax.Array) -> jax.Array:
        """What the total holds beside Σ weight × loss, float32 []."""
        del carried, step
        return jnp.zeros((), jnp.float32)

    def combine(self, grads: Mapping[str, Any], weights: Mapping, key: jax.Array) -> Any:
        """Gradients by loss → the gradient; only asked of a weighting that wants them separate."""
        del key
        return weighted_sum(grads, weights)

    def update(
        self, carried: Any, losses: Losses, present: Present, grads: Mapping | None, step: jax.Array
    ) -> Any:
        """What is carried on; `grads` by loss where they are separate, else None."""
        del losses, present, grads, step
        return carried


@dataclasses.dataclass(frozen=True)
class Geometric(Fixed):
    """The geometric mean Π loss^(w / Σw) of the losses at hand, w being the recipe's weights
    (HMTL's mean of views, over tasks): scale-free, so that a loss weighs the same in any unit.
    """

    from_losses: ClassVar[bool] = True

    def weights(
        self, carried: Any, losses: Losses, present: Present, step: jax.Array
    ) -> dict[str, jax.Array]:
        """d total / d loss; Σ weight × loss is the geometric mean itself."""
        base = {n: jnp.where(present[n], w, 0.0) for n, w in self.base_weights(step).items()}
        total = sum(base.values())
        shares = {n: w / jnp.where(total > 0, total, 1.0) for n, w in base.items()}
        return geometric_weights(losses, shares)


@dataclasses.dataclass(frozen=True)
class Uncertainty(Fixed):
    """Homoscedastic uncertainty (Kendall 2018, eq. 10): Σ w · (exp(−s) · loss + s / 2).

    s = log σ² of each loss is learned by Adam at `lr`, from s = 0. All losses have the form that
    the paper gives a classification; it halves that of a regression, which here is the recipe's
    weight (ours). w: the recipe's weights; they scale both terms, and so do not move the s at which
    a loss rests.
    """

    lr: float = 1e-3

    def init(self) -> Any:
        log_variance = {name: jnp.zeros((), jnp.float32) for name in self.base}
        return {"log_variance": log_variance, "adam": optax.adam(self.lr).init(log_variance)}

    def weights(
        self, carried: Any, losses: Losses, present: Present, step: jax.Array
    ) -> dict[str, jax.Array]:
        base = self.base_weights(step)
        return {name: w * jnp.exp(-carried["log_variance"][name]) for name, w in base.items()}

    def offset(self, carried: Any, step: jax.Array) -> jax.Array:
        base = self.base_weights(step)
        halves = [w * carried["log_variance"][name] / 2 for name, w in base.items()]
        return jnp.sum(jnp.stack(halves))

    def update(
        self, carried: Any, losses: Losses, present: Present, grads: Mapping | None, step: jax.Array
    ) -> Any:
        s = carried["log_variance"]
        slope = {
            n: jnp.where(present[n], 0.5 - jnp.exp(-s[n]) * losses[n], jnp.zeros(())) for n in s
        }
        updates, adam = optax.adam(self.lr).update(slope, carried["adam"], s)
        moved: Any = optax.apply_updates(s, updates)
        s = {n: jnp.where(present[n], moved[n], s[n]) for n in s}
        return {"log_variance": s, "adam": adam}


@dataclasses.dataclass(frozen=True)
class DynamicAverage(Fixed):
    """DWA (Liu 2019, eq. 7): K · softmax(r / T), r = mean loss of the last epoch / the one before.

    Before it has two epochs, r is 1. A mean is over the steps that have the loss; an epoch without
    any does not count for it. per_epoch: steps an epoch. The recipe's weights multiply the result.
    """

    per_epoch: int = 1
    temperature: float = 2.0

    def init(self) -> Any:
        # sum, count: of this epoch. epochs: how many have had the loss.
        parts = ("sum", "count", "epochs", "last", "before")
        return {part: {name: jnp.zeros((), jnp.float32) for name in self.base} for part in parts}

    def weights(
        self, carried: Any, losses: Losses, present: Present, step: jax.Array
    ) -> dict[str, jax.Array]:
        names = list(self.base)
        last, before, epochs = (
            jnp.stack([carried[part][name] for name in names])
            for part in ("last", "before", "epochs")
        )
        ratio = jnp.where(epochs >= 2, last / jnp.maximum(before, TINY), 1.0)
        dynamic = len(names) * jax.nn.softmax(ratio / self.temperature)
        base = self.base_weights(step)
        return {name: base[name] * dynamic[index] for index, name in enumerate(names)}

    def update(
        self, carried: Any, losses: Losses, present: Present, grads: Mapping | None, step: jax.Array
    ) -> Any:
        ends, new = (step + 1) % self.per_epoch == 0, {}
        for name in self.base:
            old = {part: values[name] for part, values in carried.items()}
            total = old["sum"] + jnp.where(present[name], losses[name], 0.0)
            count = old["count"] + present[name].astype(jnp.float32)
            closes = ends & (count > 0)
            new[name] = {
                "sum": jnp.where(ends, 0.0, total),
                "count": jnp.where(ends, 0.0, count),
                "epochs": old["epochs"] + closes.astype(jnp.float32),
                "last": jnp.where(closes, total / jnp.maximum(count, 1.0), old["last"]),
                "before": jnp.where(closes, old["last"], old["before"]),
            }
        return {part: {name: new[name][part] for name in self.base} for part in carried}


@dataclasses.dataclass(frozen=True)
class GradNorm(Fixed):
    """GradNorm (Chen 2018): weights that even out the gradient norms of losses and their pace.

    With G_i = w_i · |∇ loss_i| and r_i = (loss_i / loss_i when first seen) / their mean, w descends
    along Σ |G_i − mean(G) · r_i^alpha|, its target held constant, at `lr`; then Σ w = number of
    losses. Means and descent are over the losses that the batch has.
    The norm is over the whole encoder (the paper takes its last layer, to save time; here the
    gradients are at hand). Weights stay above 0.001 (ours). The recipe's weights scale the losses.
    """

    lr: float = 1e-3
    alpha: float = 1.5
    separate: ClassVar[bool] = True

    def init(self) -> Any:
        # first: 0 until the loss is seen.
        ones = {name: jnp.ones((), jnp.float32) for name in self.base}
        return {"weights": ones, "first": {name: jnp.zeros((), jnp.float32) for name in self.base}}

    def weights(
        self, carried: Any, losses: Losses, present: Present, step: jax.Array
    ) -> dict[str, jax.Array]:
        base = self.base_weights(step)
        return {name: w * carried["weights"][name] for name, w in base.items()}

    def update(
        self, carried: Any, losses: Losses, present: Present, grads: Mapping | None, step: jax.Array
    ) -> Any:
        assert grads is not None  # `separate` promises them
        names, base, old = list(self.base), self.base_weights(step), carried["first"]
        first = {n: jnp.where(old[n] > 0, old[n], losses[n]) for n in names}
        here = jnp.stack([present[n] for n in names])

        def mean(values: jax.Array) -> jax.Array:
            """Over the losses that are here."""
            count = jnp.sum(here.astype(jnp.float32))
            return jnp.sum(jnp.where(here, values, 0.0)) / jnp.maximum(count, 1.0)

        norms = jnp.stack([base[n] * optax.tree.norm(grads[n]["encoder"]) for n in names])
        w = jnp.stack([carried["weights"][n] for n in names])
        pace = jnp.stack([losses[n] / jnp.maximum(first[n], TINY) for n in names])
        target = mean(w * norms) * (pace / jnp.maximum(mean(pace), TINY)) ** self.alpha
        moved = jnp.maximum(w - self.lr * jnp.sign(w * norms - target) * norms, 1e-3)
        w = jnp.where(here, moved, w)
        w = w * len(names) / jnp.sum(w)
        return {"weights": {n: w[i] for i, n in enumerate(names)}, "first": first}


@dataclasses.dataclass(frozen=True)
class PCGrad(Fixed):
    """Projecting conflicting gradients (Yu 2020, algorithm 1), over all parameters as its authors'
    code does: each loss's gradient loses its part along every other one that it points against, in
    an order drawn anew for each; the results are summed. The recipe's weights scale the losses.
    """

    separate: ClassVar[bool] = True

    def combine(self, grads: Mapping[str, Any], weights: Mapping, key: jax.Array) -> Any:
        names = list(grads)
        scaled = [jax.tree.map(lambda g, w=weights[n]: w * g, grads[n]) for n in names]
        # Projections only ever mix the gradients, so that their products with each other suffice.
        gram = jnp.stack([jnp.stack([inner(a, b) for b in scaled]) for a in scaled])
        shares = jnp.stack(
            [projected(gram, i, jax.random.fold_in(key, i)) for i in range(len(names))]
        )
        total = jnp.sum(shares, axis=0)
        return weighted_sum(
            dict(zip(names, scaled, strict=True)), {n: total[i] for i, n in enumerate(names)}
        )


def projected(gram: jax.Array, index: int, key: jax.Array) -> jax.Array:
    """Gradient `index` after its projections, as float32 [K] shares of all K gradients."""
    count = gram.shape[0]

    def against(shares, other):
        product = jnp.dot(shares, gram[:, other], precision=jax.lax.Precision.HIGHEST)
        conflict = (product < 0) & (other != index)
        loss = jnp.where(conflict, product / jnp.maximum(gram[other, other], TINY), 0.0)
        return shares.at[other].add(-loss), None

    order = jax.random.permutation(key, count)
    return jax.lax.scan(against, jax.nn.one_hot(index, count, dtype=jnp.float32), order)[0]


def inner(a: Any, b: Any) -> jax.Array:
    """⟨a, b⟩ over all leaves of two trees, float32 []."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jnp.sum(jnp.stack(jax.tree.leaves(products)))


def weighted_sum(trees: Mapping[str, Any], weights: Mapping) -> Any:
    """Σ weight × tree."""
    scaled = [jax.tree.map(lambda x, w=weights[n]: w * x, tree) for n, tree in trees.items()]
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *scaled)


def geometric_weights(losses: Mapping, shares: Mapping) -> dict[str, jax.Array]:
    """∂ Π loss^share / ∂ loss, each loss being a float32 []; shares sum to 1."""
    mean = jnp.exp(sum(s * jnp.log(jnp.maximum(losses[n], TINY)) for n, s in shares.items()))
    return {n: s * mean / jnp.maximum(losses[n], TINY) for n, s in shares.items()}


def ssat(tasks: Mapping[str, Callable], pretexts: Mapping[str, Callable], lam: float) -> Fixed:
    """λ × each task + (1 − λ) × each pretext (SSAT, arXiv 2310.20704, λ = 0.1).

    The recipe's own weights multiply the two sides, for recipes with several tasks or pretexts.
    """

    def times(share: float, base: Callable) -> Callable:
        return lambda step: share * base(step)

    by_name = {name: times(lam, base) for name, base in tasks.items()}
    return Fixed(by_name | {name: times(1.0 - lam, base) for name, base in pretexts.items()})


def schedule(name: str, start: float, kind: str, end: float, steps: int) -> Callable:
    """A weight over the run: `constant`, or from `start` to `end` in a `linear` or `cosine` way."""
    if kind == "constant":
        return optax.constant_schedule(start)
    if kind == "linear":
        return optax.linear_schedule(start, end, steps)
    if kind == "cosine":
        down = optax.cosine_decay_schedule(1.0, steps)
        return lambda step: end + (start - end) * down(step)
    raise UserError(f"weight_schedule of {name} is {kind!r}; known: constant, linear, cosine.")


# What the settings of config.weighting may be.
LIMITS = {
    "lam": limits.number(0, 1),
    "lr": limits.above(0, "a rate"),
    "temperature": limits.above(0),
    "alpha": limits.number(0),
}

# name → (tasks, pretexts, settings of config.weighting, steps an epoch) → weighting.
WEIGHTINGS: dict[str, Callable[[Mapping, Mapping, Mapping, int], Fixed]] = {
    "fixed": lambda tasks, pretexts, of, per_epoch: Fixed({**tasks, **pretexts}),
    "ssat": lambda tasks, pretexts, of, per_epoch: ssat(tasks, pretexts, of["lam"]),
    "geometric": lambda tasks, pretexts, of, per_epoch: Geometric({**tasks, **pretexts}),
    "uncertainty": lambda tasks, pretexts, of, per_epoch: Uncertainty(
        {**tasks, **pretexts}, lr=of["lr"]
    ),
    "dwa": lambda tasks, pretexts, of, per_epoch: DynamicAverage(
        {**tasks, **pretexts}, per_epoch=per_epoch, temperature=of["temperature"]
    ),
    "gradnorm": lambda tasks, pretexts, of, per_epoch: GradNorm(
        {**tasks, **pretexts}, lr=of["lr"], alpha=of["alpha"]
    ),
    "pcgrad": lambda tasks, pretexts, of, per_epoch: PCGrad({**tasks, **pretexts}),
}
