"""Losses on lists, against arithmetic: K = 3 in the order of the record, scores not in order."""

from __future__ import annotations

import math

import pytest

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import softplus

close = pytest.approx

# rho: 1, -2, 0.5; scores: middle, best, worst; per token: -1, -1.25, -1.5
LIST = {
    "completions": [[-2.0, -5.0, -1.5]],
    "ref_completions": [[-3.0, -3.0, -2.0]],
    "num_tokens": [[2, 4, 1]],
    "scores": [[0.5, 1.0, 0.0]],
}


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def test_info_nca_by_hand() -> None:
    target, p = softmax([0.5, 1.0, 0.0]), softmax([0.5, -1.0, 0.25])
    expected = -sum(t * math.log(q) for t, q in zip(target, p, strict=True))
    assert evaluate(load("info_nca", alpha=1.0, beta=0.5), **LIST) == close([expected])


def test_nca_list_by_hand() -> None:
    target, r = softmax([0.5, 1.0, 0.0]), [0.5, -1.0, 0.25]
    attract = sum(t * softplus(-x) for t, x in zip(target, r, strict=True))
    repel = sum(softplus(x) for x in r) / 3
    assert evaluate(load("nca_list", alpha=1.0, beta=0.5), **LIST) == close([attract + repel])


def test_plackett_luce_by_hand() -> None:
    best, middle, worst = (math.exp(0.5 * rho) for rho in (-2, 1, 0.5))
    expected = -math.log(best / (best + middle + worst)) - math.log(middle / (middle + worst))
    assert evaluate(load("plackett_luce", beta=0.5), **LIST) == close([expected])


def test_li_po_by_hand() -> None:
    # ranks by reward: the middle one 1, the worst one 2, the best one 3
    gain = {"best": 1.0, "middle": math.sqrt(2) - 1, "worst": 0.0}  # 2^s - 1
    discount = {"best": 1 / math.log(4), "middle": 1 / math.log(2), "worst": 1 / math.log(3)}
    reward = {"best": -1.0, "middle": 0.5, "worst": 0.25}
    expected = 0.0
    for i, j in (("best", "middle"), ("best", "worst"), ("middle", "worst")):
        weight = abs(gain[i] - gain[j]) * abs(discount[i] - discount[j])
        expected += weight * softplus(-(reward[i] - reward[j]))
    assert evaluate(load("li_po", beta=0.5), **LIST) == close([expected])


def test_li_po_refuses_scores_outside_its_scale() -> None:
    with pytest.raises(ValueError, match="rescale"):
        evaluate(load("li_po"), **(LIST | {"scores": [[5.0, 1.0, 0.0]]}))


def test_rrhf_by_hand() -> None:
    # best -1.25 below middle -1: 0.25; best above worst; middle above worst; NLL of the best: 5
    assert evaluate(load("rrhf", lam=2.0), **LIST) == close([2 * 0.25 + 5])


def test_pro_by_hand() -> None:
    p = {"best": -1.25, "middle": -1.0, "worst": -1.5}
    first = 1.0 * p["best"]  # g_kk = max(0.5, 1)
    total = math.exp(first) + math.exp(0.5 * p["middle"]) + math.exp(1.0 * p["worst"])
    second = 0.5 * p["middle"]
    rest = math.exp(second) + math.exp(0.5 * p["worst"])
    expected = math.log(total) - first + math.log(rest) - second + 0.05 * 2**2 * 5
    assert evaluate(load("pro", beta=0.05), **LIST) == close([expected])


def test_tpo_by_hand() -> None:
    # gold is the second of the record, chosen the first, rejected the last
    expected = softplus(-0.5 * (-2.0 + 1.5)) + 0.3 * 1.25
    assert evaluate(load("tpo", beta=0.5, alpha=0.3), **LIST) == close([expected])


def test_tpo_l_by_hand() -> None:
    expected = softplus(-(2 * (-1.0 + 1.5) - 0.5)) + 0.3 * 1.25
    assert evaluate(load("tpo_l", beta=2.0, alpha=0.3, gamma=0.5), **LIST) == close([expected])


def test_tpo_needs_three() -> None:
    two = {"completions": [[-1.0, -2.0]], "num_tokens": [[1, 1]], "scores": [[1.0, 0.0]]}
    with pytest.raises(ValueError, match="at least 3"):
        evaluate(load("tpo"), **two)


@pytest.mark.parametrize("name", ["info_nca", "nca_list", "plackett_luce", "li_po", "rrhf", "pro", "tpo", "tpo_l"])
def test_a_short_list_beside_a_long_one_has_its_own_value(name: str) -> None:
    ragged = {key: [*value, [*value[0], value[0][0]]] for key, value in LIST.items()}
    ragged["scores"][1][3] = 0.25
    assert evaluate(load(name), **ragged)[0] == close(evaluate(load(name), **LIST)[0])
