"""How the losses of tasks and pretexts combine into one total.

A weighting is a frozen dataclass with `weights() -> {name of a loss: weight}`; the total is the sum
of weight × loss.
"""

import dataclasses
from collections.abc import Mapping

from hmtl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Weights that the recipe states, one a loss."""

    by_name: Mapping[str, float]

    def __post_init__(self):
        bad = {name: weight for name, weight in self.by_name.items() if not weight >= 0}
        if bad or not any(self.by_name.values()):
            raise UserError(
                f"Loss weights must be 0 or more, and not all 0; got {dict(self.by_name)}."
            )

    def weights(self) -> dict[str, float]:
        """One weight a loss."""
        return dict(self.by_name)


def ssat(tasks: Mapping[str, float], pretexts: Mapping[str, float], lam: float) -> Fixed:
    """λ × each task + (1 − λ) × each pretext (SSAT, arXiv 2310.20704, λ = 0.1).

    The recipe's own weights multiply the two sides, for recipes with several tasks or pretexts.
    """
    if not 0.0 <= lam <= 1.0:
        raise UserError(f"weighting.lam must lie in [0, 1], not {lam}.")
    weights = {name: lam * weight for name, weight in tasks.items()}
    return Fixed(weights | {name: (1.0 - lam) * weight for name, weight in pretexts.items()})


def fixed(tasks: Mapping[str, float], pretexts: Mapping[str, float], lam: float) -> Fixed:
    """The recipe's weights as they are."""
    del lam
    return Fixed({**tasks, **pretexts})


WEIGHTINGS = {"fixed": fixed, "ssat": ssat}
