"""What each loss weighs in the total."""

import pytest

from hmtl_jax import weighting
from hmtl_jax.errors import UserError


def test_ssat_gives_lambda_to_tasks_and_the_rest_to_pretexts():
    weights = weighting.ssat({"expression": 1.0, "pose": 2.0}, {"mae": 0.5}, 0.1).weights()
    assert weights == {
        "expression": pytest.approx(0.1),
        "pose": pytest.approx(0.2),
        "mae": pytest.approx(0.45),
    }


def test_fixed_weights_are_those_of_the_recipe():
    assert weighting.fixed({"a": 1.0}, {"b": 0.0}, lam=0.1).weights() == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("weights", [{"a": 0.0, "b": 0.0}, {"a": -1.0}, {"a": float("nan")}, {}])
def test_weights_that_train_nothing_or_backwards_are_refused(weights):
    with pytest.raises(UserError, match=r"0 or more, and not all 0; got"):
        weighting.Fixed(weights)


@pytest.mark.parametrize("lam", [-0.1, 1.1])
def test_lambda_is_a_share(lam):
    with pytest.raises(UserError, match=r"weighting\.lam must lie in \[0, 1\]"):
        weighting.ssat({"a": 1.0}, {"b": 1.0}, lam)
