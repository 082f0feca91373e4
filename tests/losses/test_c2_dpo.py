"""Proofs of `c2_dpo`."""

from __future__ import annotations

import torch

from prefopt.losses.registry import load
from prefopt.testing.numbers import build, call, to_tensor
from tests.losses.hand import LOG2, PAIR, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.step_0 import at_reference

NOT_TESTED = {
    "c2_dpo parity": "not in TRL; oxRL's is judged by the vectors",
}


def test_c2_dpo_by_hand() -> None:
    """rho 1 and -2: Delta 3, their sum -1."""
    assert on_pair("c2_dpo", beta=0.5, lam=0.25) == close(softplus(-1.5) + 0.25 * 1.0)


def test_c2_dpo_at_reference() -> None:
    assert at_reference("c2_dpo") == close(LOG2)


def test_c2_dpo_raises_the_chosen_side_where_both_have_fallen() -> None:
    """rho -40 and -60: the term adds 2 lam * 100 to the pull of beta sigmoid(-2) on the chosen side."""
    numbers = PAIR | {"chosen": [-43.0], "rejected": [-63.5]}
    tensors = {name: to_tensor(name, value) for name, value in numbers.items()}
    pulls = {}
    for lam in (0.0, 2e-4):
        loss = load("c2_dpo", lam=lam)
        chosen = tensors["chosen"].clone().requires_grad_()
        call(loss, build(loss.needs, tensors | {"chosen": chosen})).loss.sum().backward()
        assert chosen.grad is not None
        pulls[lam] = -chosen.grad.item()
    assert pulls[0.0] == close(0.1 * torch.tensor(-2.0).sigmoid().item())
    assert pulls[2e-4] == close(pulls[0.0] + 0.04)


@identity("c2_dpo(lam=0.0) = dpo")
def test_c2_dpo_is_dpo(seed: int) -> Sides:
    return values("c2_dpo", pairs(seed), lam=0.0), values("dpo", pairs(seed))
