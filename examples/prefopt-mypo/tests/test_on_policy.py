"""MyPG passes the checks of prefopt, and its values follow its formula."""

import math

import pytest
from prefopt_mypo.on_policy import MyPG

from prefopt.testing import check_loss, evaluate


def test_kit() -> None:
    assert [f"{check.name}: {check.detail}" for check in check_loss(MyPG()) if not check.ok] == []


def test_by_hand() -> None:
    # rho_old = 0.5, -2; R = r - 0.5 rho_old = 0.25, 2; A = -0.875, 0.875; ratios e^0.5, 1
    value = evaluate(MyPG(beta=0.5), completions=[[-2.0, -5.0]], old_completions=[[-2.5, -5.0]],
                     ref_completions=[[-3.0, -3.0]], num_tokens=[[2, 4]], scores=[[0.5, 1.0]])  # fmt: skip
    assert value == pytest.approx([-(-0.875 * math.exp(0.5) + 0.875) / 2])
