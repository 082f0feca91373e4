"""Which settings a method tries: as many for all, strengths of the plugin's useful range, rates as results lead."""

from __future__ import annotations

import functools
import math
import re
from types import SimpleNamespace
from typing import Any, ClassVar

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.compare import search
from prefopt.compare.search import STRENGTHS, Setting, at_edge, settings, strength, strengths
from prefopt.config.compose import compose
from prefopt.config.run_config import RunConfig
from prefopt.errors import UserError
from prefopt.losses import MENU, load_class, registry
from prefopt.plugin import comments
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
    return {name: getattr(made, name) for name in ("r_max", "vocab_size", "good_score") if hasattr(made, name)}


def walk(best: tuple[float, float], trials: int, name: str = "dpo") -> list[tuple[float, float]]:
    """(strength, power of 3 of the rate) of each trial, where the score falls with the distance from `best`."""

    def place(setting: Setting) -> tuple[float, float]:
        return next(iter(setting.strength.values()), 0.0), round(math.log(setting.learning_rate / 1e-3, 3), 6)

    def score(setting: Setting) -> float:
        beta, power = place(setting)
        return -abs(math.log(max(beta, 1e-9) / best[0])) - abs(power - best[1])

    return [place(setting) for setting in settings(compose([f"loss={name}", "output_dir=."]), trials, score)]


@pytest.mark.parametrize("name", sorted(MENU))
def test_the_first_trial_is_the_default_at_the_configured_rate(name: str) -> None:
    """That of the catalogue, whether or not it is among the declared strengths."""
    loss: Any = example(load_class(name))
    parameter, values = strengths(loss, name)
    config: Any = SimpleNamespace(loss=loss, loss_name=name, trainer={"learning_rate": 1e-3})
    (first,) = settings(config, 6)  # no result yet: nothing more is known
    assert first == Setting({parameter: getattr(loss, parameter)} if parameter else {}, 1e-3)
    two = settings(config, 6, lambda setting: 0.0 if setting == first else None)
    if parameter is None:
        assert two[1] == Setting({}, 1e-3 / 3)
    else:
        at, then = (values.index(setting.strength[parameter]) for setting in two)
        middle = (len(values) - 1) / 2
        assert then - at == (1 if at <= middle else -1)


def test_the_first_trial_is_what_the_user_configured() -> None:
    config = compose(["loss=dpo", "loss.beta=0.2", "trainer.learning_rate=1e-4", "output_dir=."])
    assert settings(config, 4) == [Setting({"beta": 0.2}, 1e-4)]
    assert strengths(config.loss, "dpo") == ("beta", (0.03, 0.1, 0.2, 0.3, 1.0))


def test_a_best_rate_at_the_edge_is_followed_outward() -> None:
    """The best lies at beta 0.3 and 27 times below the configured rate: straight there, then one step beyond."""
    assert walk((0.3, -3), 6) == [(0.1, 0), (0.3, 0), (0.3, -1), (0.3, -2), (0.3, -3), (0.3, -4)]
    assert walk((0.3, 2), 6) == [(0.1, 0), (0.3, 0), (0.3, -1), (0.3, 1), (0.3, 2), (0.3, 3)]


def test_a_rate_between_worse_ones_is_left_for_the_strength() -> None:
    """Then half steps of the rate, then what is beside the next best."""
    assert walk((0.1, 0), 9) == [
        (0.1, 0), (0.3, 0), (0.1, -1), (0.1, 1), (0.03, 0), (0.1, -0.5), (0.1, 0.5), (0.03, -0.5), (0.3, -0.5),
    ]  # fmt: skip
    assert walk((1.0, 0), 6) == [(0.1, 0), (0.3, 0), (0.3, -1), (0.3, 1), (1.0, 0), (1.0, -1)]


def test_a_loss_without_strength_tries_as_many_learning_rates() -> None:
    assert walk((1e-9, 0), 5, "sft") == [(0, 0), (0, -1), (0, 1), (0, -0.5), (0, 0.5)]
    assert walk((1e-9, -3), 5, "sft") == [(0, 0), (0, -1), (0, -2), (0, -3), (0, -4)]


def test_where_all_runs_fail_the_rate_goes_down() -> None:
    config = compose(["loss=dpo", "output_dir=."])
    found = settings(config, 5, lambda setting: math.nan)
    assert [s.learning_rate for s in found] == pytest.approx([1e-3 / 3**n for n in range(5)])
    # of a run that works everything is better than of one that does not
    found = settings(config, 3, lambda setting: -5.0 if setting.learning_rate == 1e-3 / 3 else math.nan)
    assert found[2].learning_rate == pytest.approx(1e-3 / 9)


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan]), min_size=30, max_size=30), st.sampled_from(["dpo", "sft"]))
@hypothesis.settings(max_examples=40, deadline=None)
def test_any_results_give_every_method_its_trials(scores: list[float], name: str) -> None:
    """None twice, all strengths declared ones; the way is the same however many trials are allowed."""
    config = configuration(name)

    def scored(trials: int) -> list[Setting]:
        drawn = iter(scores)
        return settings(config, trials, lambda setting: next(drawn))

    found = scored(30)
    assert len({str(setting) for setting in found}) == 30
    assert {s.strength["beta"] for s in found if s.strength} <= {0.03, 0.1, 0.3, 1.0}
    assert scored(7) == found[:7]


@functools.cache
def configuration(name: str) -> RunConfig:
    return compose([f"loss={name}", "output_dir=."])


def test_a_setting_is_applied_and_said() -> None:
    config = compose(["loss=simpo", "output_dir=."])
    setting = settings(config, 3, lambda setting: setting.strength["beta"])[2]
    changed = setting.apply(config)
    assert (changed.loss.beta, changed.trainer["learning_rate"]) == (3.5, pytest.approx(1e-3 / 3))  # type: ignore[attr-defined]
    again = compose(["loss=simpo", "output_dir=.", *setting.overrides()])
    assert again.loss == changed.loss
    assert again.trainer["learning_rate"] == pytest.approx(changed.trainer["learning_rate"], rel=1e-5)
    assert config.trainer["learning_rate"] == 1e-3  # the configuration itself stays


def test_no_trials_are_refused() -> None:
    with pytest.raises(UserError, match=r"budget\.trials=0 must be at least 1"):
        settings(compose(["loss=dpo", "output_dir=."]), 0)


@pytest.mark.parametrize("space", [{"beta": (0.1, 0.2)}, {"bta": (1, 2, 3, 4)}, {"beta": (4, 3, 2, 1)}])
def test_a_wrong_declaration_is_refused(space: dict[str, tuple[float, ...]]) -> None:
    class Odd(load_class("dpo")):  # type: ignore[misc]
        search_space: ClassVar[Any] = space

    with pytest.raises(UserError, match="search_space must name"):
        strength(Odd(), "odd")


def test_the_edge_of_the_grid() -> None:
    """Two inner strengths tell of no edge, only of a budget that ended; of one learning rate nothing can be said."""
    values = (0.03, 0.1, 0.3, 1.0)

    def at_edge(chosen: dict[str, float], tried: list[dict[str, float]]) -> list[str]:
        return search.at_edge(chosen, tried, values)

    tried = [{"beta": b, "learning_rate": 1e-3} for b in (0.1, 0.3, 0.03, 1.0)]
    for chosen, beyond in ((tried[0], "lower"), (tried[1], "higher")):
        said = f"beta={chosen['beta']} was not tried beyond: a {beyond} one is declared"
        assert at_edge(chosen, tried[:2]) == [said]
        assert at_edge(chosen, tried) == []
    assert at_edge(tried[2], tried) == ["beta=0.03 is the lowest that is declared"]
    assert at_edge(tried[3], tried) == ["beta=1 is the highest that is declared"]
    assert at_edge(tried[0], tried[:1]) == []
    only = [{"beta": 1.0, "learning_rate": rate} for rate in (1e-3, 3e-4, 3e-3)]
    assert at_edge(only[0], only) == ["beta=1 is the highest that is declared"]
    for beta, side in ((5.0, "above"), (0.01, "below")):  # configured, not declared
        own = [{"beta": beta, "learning_rate": rate} for rate in (1e-3, 3e-4, 3e-3)]
        assert at_edge(own[0], own) == [f"beta={beta:g} is configured, {side} all that are declared"]
        nearest = {"beta": 1.0 if side == "above" else 0.03, "learning_rate": 1e-3}
        beyond = "lower" if side == "above" else "higher"
        assert at_edge(nearest, [*own, nearest]) == [
            f"beta={nearest['beta']:g} was not tried beyond: a {beyond} one is declared"
        ]
    slower = {"beta": 0.1, "learning_rate": 3e-4}
    assert "beta=0.1 is the only one that was tried: others are declared" in at_edge(tried[0], [tried[0], slower])
    rates = [{"learning_rate": rate} for rate in (1e-3, 3e-4, 3e-3)]
    assert at_edge(rates[0], rates) == []
    assert at_edge(rates[2], rates) == ["learning_rate=0.003 is the highest that was tried"]


@pytest.mark.parametrize("name", ["dpo", "simpo", "sft"])
@given(st.lists(st.floats(-1, 1), min_size=24, max_size=24), st.integers(2, 24))
@hypothesis.settings(max_examples=20, deadline=None)
def test_edges_are_those_of_the_declared_strengths(name: str, scores: list[float], trials: int) -> None:
    """What the order of the trials says of a strength's place is what the plugin declares."""
    config = configuration(name)
    parameter, declared = strengths(config.loss, name)
    drawn = iter(scores)
    tried = [setting.plain() for setting in settings(config, trials, lambda setting: next(drawn))]
    for chosen in tried:
        said = " ".join(edge for edge in at_edge(chosen, tried, declared) if not edge.startswith("learning_rate"))
        values = [setting[parameter] for setting in tried] if parameter is not None else []
        if not values or min(values) < chosen[parameter or ""] < max(values):
            assert said == ""
        else:
            assert ("that is declared" in said) == (chosen[parameter or ""] in (declared[0], declared[-1]))
            assert ("not tried beyond" in said or "only one" in said) == (chosen[parameter or ""] in declared[1:-1])
