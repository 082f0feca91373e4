"""Which settings a method may try: as many for all, inside the plugin's useful range, in one order."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import pytest

from prefopt import registry
from prefopt.cli.compose import compose
from prefopt.compare.search import MAX_TRIALS, STRENGTHS, at_edge, settings, strength
from prefopt.errors import UserError
from prefopt.hyperparameters import comments
from prefopt.losses import MENU, load_class
from prefopt.testing.kit import example

NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


@pytest.mark.parametrize("name", sorted(MENU))
def test_every_loss_declares_what_to_try(name: str) -> None:
    """The values lie in the range that the plugin's own field line calls useful, its default among or between them."""
    cls: Any = load_class(name)
    assert "search_space" in vars(cls)
    if not cls.search_space:
        assert strength(example(cls), name) == (None, ())
        return
    parameter, values = strength(example(cls), name)
    assert parameter is not None
    assert len(values) == STRENGTHS
    found = re.search(rf"(?:useful range|useful range by task,) ({NUMBER}) to ({NUMBER})", comments(cls)[parameter])
    if found is None:  # "useful range by task, 0.1 to 100"
        found = re.search(rf"useful range \D*({NUMBER}) to ({NUMBER})", comments(cls)[parameter])
    assert found is not None, comments(cls)[parameter]
    low, high = map(float, found.groups())
    assert all(low <= value <= high for value in values)
    default = getattr(cls, parameter)
    assert values[0] <= default <= values[-1]
    for value in values:
        registry.load(name, **{**_required(cls), parameter: value})


def _required(cls: Any) -> dict[str, Any]:
    made = example(cls)
    return {name: getattr(made, name) for name in ("r_max", "vocab_size") if hasattr(made, name)}


def test_trials_are_the_first_of_one_order() -> None:
    config = compose(["loss=dpo", "output_dir=."])
    every = settings(config, MAX_TRIALS)
    assert len({str(s) for s in every}) == MAX_TRIALS == 12
    assert [settings(config, n) for n in (1, 2, 5)] == [every[:1], every[:2], every[:5]]
    assert [s.strength["beta"] for s in every[:4]] == [0.1, 0.3, 0.03, 1.0]  # inner strengths first
    assert {s.learning_rate for s in every[:4]} == {1e-3}  # the world's own
    assert sorted({s.learning_rate for s in every}) == pytest.approx([1e-3 / 3, 1e-3, 3e-3])


def test_a_loss_without_strength_tries_as_many_learning_rates() -> None:
    found = settings(compose(["loss=sft", "output_dir=."]), 4)
    assert [s.strength for s in found] == [{}] * 4
    assert [s.learning_rate for s in found] == pytest.approx([1e-3, 1e-3 / 3**0.5, 1e-3 * 3**0.5, 1e-3 / 3])


def test_a_setting_is_applied_and_said() -> None:
    config = compose(["loss=simpo", "output_dir=."])
    setting = settings(config, 5)[4]
    changed = setting.apply(config)
    assert (changed.loss.beta, changed.trainer["learning_rate"]) == (3.5, pytest.approx(1e-3 / 3))  # type: ignore[attr-defined]
    again = compose(["loss=simpo", "output_dir=.", *setting.overrides()])
    assert again.loss == changed.loss
    assert again.trainer["learning_rate"] == pytest.approx(changed.trainer["learning_rate"], rel=1e-5)
    assert config.trainer["learning_rate"] == 1e-3  # the configuration itself stays


@pytest.mark.parametrize("trials", [0, 13])
def test_a_budget_beyond_the_grid_is_refused(trials: int) -> None:
    with pytest.raises(UserError, match=r"budget\.trials.*1 to 12"):
        settings(compose(["loss=dpo", "output_dir=."]), trials)


@pytest.mark.parametrize("space", [{"beta": (0.1, 0.2)}, {"bta": (1, 2, 3, 4)}, {"beta": (4, 3, 2, 1)}])
def test_a_wrong_declaration_is_refused(space: dict[str, tuple[float, ...]]) -> None:
    class Odd(load_class("dpo")):  # type: ignore[misc]
        search_space: ClassVar[Any] = space

    with pytest.raises(UserError, match="search_space must name"):
        strength(Odd(), "odd")


def test_the_edge_of_the_grid() -> None:
    """At the lowest of three strengths; the learning rate had one value, of which nothing can be said."""
    tried = [{"beta": b, "learning_rate": 1e-3} for b in (0.3, 0.1, 1.0)]
    assert at_edge(tried[1], tried) == ["beta=0.1 is the lowest that was tried"]
    assert at_edge(tried[0], tried) == []
    assert at_edge(tried[0], tried[:2]) == []
