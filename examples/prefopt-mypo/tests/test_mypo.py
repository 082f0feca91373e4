"""MyPO passes the checks of prefopt, and its values follow its formula."""

import math

import pytest
from prefopt_mypo import MyPO

from prefopt.testing import check_loss, evaluate


def test_kit() -> None:
    assert [f"{check.name}: {check.detail}" for check in check_loss(MyPO()) if not check.ok] == []


def test_by_hand() -> None:
    value = evaluate(MyPO(beta=0.5, cap=2.0), chosen=[-2.0], rejected=[-5.5], ref_chosen=[-3.0], ref_rejected=[-3.5])
    assert value == pytest.approx([math.log(1 + math.exp(-2 * math.tanh(1.5 / 2)))])
