"""What is said of results that were made up: the finding, the warnings, the controls, the alignment of seeds."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefopt.compare import results
from prefopt.compare.jobs import Result
from prefopt.compare.results import (
    Outcome,
    common_seeds,
    finding,
    markdown,
    outcome,
    plain,
    say_needed,
    seeds_by_prompts,
)
from prefopt.compare.rounds import Row
from prefopt.compare.search import Setting
from prefopt.compare.spec import Budget, Comparison, Method
from prefopt.compare.statistics import TOO_MANY
from prefopt.errors import PrefoptError

PROMPTS = np.random.default_rng(0).normal(0, 1, 200)


def run(name: str, number: int, reward: float, *, status: Any = "ok", valid: float = 0.95, kl: float = 1.0) -> Result:
    rng = np.random.default_rng([7, number, *name.encode()])
    values = reward + PROMPTS + rng.normal(0, 0.03) + rng.normal(0, 0.4, len(PROMPTS))
    figures = {"true_reward": float(values.mean()), "kl": kl, "valid": valid}
    return Result(
        key=f"{name}{number}", method=name, label=name, status=status, reason="" if status == "ok" else "loss is nan",
        figures=figures, arrays={"true_reward": values, "kl": np.full(len(values), kl)} if status == "ok" else {},
        cost={"train_seconds": 2.0, "measure_seconds": 1.0, "tokens": 100.0, "peak_memory_mib": 50.0},
    )  # fmt: skip


def row(name: str, reward: float, *, control: bool = False, seeds: int = 3, **given: Any) -> Row:
    setting = Setting({"beta": 0.1}, 1e-3)
    config: Any = SimpleNamespace(model=SimpleNamespace(path="m"), data=SimpleNamespace(path="d"))
    trial = run(name, 0, reward, **given)
    if name == "base":
        return Row(name=name, method=None, config=config, trials=[trial], finals=[run(name, 1, reward, **given)])
    offset = 3 if name.endswith("again") else 0
    method = Method(name=name, loss="dpo", sides_swapped=control, seed_offset=offset)
    finals = [run(name, i + 1, reward, **given) for i in range(seeds)]
    return Row(
        name=name, method=method, config=config, settings=[setting], trials=[trial], chosen=setting, finals=finals
    )


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "fingerprints", lambda config: {"data": "d", "weights": "w"})


def held(*rows: Row, controls: bool = False, trials: int = 4) -> Outcome:
    names = [r.name for r in rows if r.method is not None and not r.control and r.name != "sft"]
    comparison = Comparison(
        methods=tuple(Method(name=name, loss="dpo") for name in names), budget=Budget(trials=trials), controls=controls
    )
    return outcome(comparison, rows, command="prefopt compare", seconds=1.0)


def test_the_finding_names_who_is_better_and_who_cannot_be_told() -> None:
    found = held(row("base", -0.5), row("sft", 0.0), row("good", 1.0), row("as_good", 1.0), row("poor", 0.4))
    best, other = (s.name for s in found.competitors[:2])
    assert {best, other} == {"good", "as_good"}
    said = " ".join(finding(found))
    assert said.startswith(f"{best} has the best true reward; it is better than poor, and cannot be told from {other}.")
    assert "All are better than SFT on the chosen side." in said
    assert "All are better than the model before training." in said
    assert found.warnings == []


def test_controls_that_come_out_wrong_are_said_first() -> None:
    """The second name is better than the first, and the wrong sign no worse: the comparison is not to be trusted."""
    common = [row("base", 0.0), row("sft", 0.0), row("dpo", 1.0)]
    found = held(*common, row("dpo_again", 3.0), row("wrong_sign", 1.0, control=True), controls=True)
    assert [warning.split(":")[0] for warning in found.warnings[:2]] == ["CONTROL FAILED", "CONTROL FAILED"]
    right = held(*common, row("dpo_again", 1.0), row("wrong_sign", -1.0, control=True), controls=True)
    assert right.warnings == []


def test_what_weakens_a_result_is_said() -> None:
    near, far = row("near", 1.0, kl=0.5), row("far", 1.2, valid=0.7, kl=3.0)
    rows = [row("base", 0.0), row("sft", 0.0), near, far]
    said = "\n".join(held(*rows, trials=2).warnings)
    for words in ("2 trials a method", "unequal validity: 70% of far's texts", "unequal distance: near went 0.50"):
        assert words in said


def test_a_failed_seed_is_left_out_for_all() -> None:
    """Seeds are paired: without the second run of one method, the second of the others has nothing beside it."""
    whole, broken = row("a", 1.0), row("b", 1.0)
    broken.finals[1] = run("b", 2, 1.0, status="diverged")
    assert common_seeds([whole, broken], "true_reward") == [0, 2]
    values = seeds_by_prompts(whole, "true_reward", [0, 2])
    assert values is not None
    np.testing.assert_array_equal(values[1], whole.finals[2].arrays["true_reward"])
    found = held(row("base", 0.0), row("sft", 0.0), whole, broken)
    assert "b: diverged: loss is nan" in found.warnings


def test_figures_are_of_the_seeds_of_the_point() -> None:
    whole, broken = row("a", 1.0), row("b", 1.0)
    broken.finals[1] = run("b", 2, 1.0, status="diverged")
    found = held(row("base", 0.0), row("sft", 0.0), whole, broken)
    for standing in found.standings:
        assert standing.value is not None
        assert standing.value.point == pytest.approx(standing.figures["true_reward"])


def test_seeds_are_paired_by_number_where_too_few_worked_for_all() -> None:
    """a has seeds 1 and 2, b 2 and 3, c 1, 2, 3: a and b have one in common, c two with either."""
    a, b, c = row("a", 1.0), row("b", 1.3), row("c", 9.0)
    a.finals[2], b.finals[0] = run("a", 3, 1.0, status="failed"), run("b", 1, 1.3, status="failed")
    assert common_seeds([a, b, c], "true_reward") is None
    found = held(row("base", -9.0), row("sft", 0.0), a, b, c)
    verdicts = {(p["a"], p["b"]): p["verdict"] for p in plain(found)["verdicts"]}
    assert verdicts["b", "a"] == "cannot_tell"
    assert verdicts["c", "a"] == verdicts["c", "b"] == "better"
    assert verdicts["a", "base"] == "better"
    assert any(warning.startswith("no two seeds worked for every method") for warning in found.warnings)


def test_a_method_with_one_seed_left_is_not_told() -> None:
    """Not from the model before training either, and the others keep their verdicts."""
    lone = row("lone", 3.0)
    for place in (0, 1):
        lone.finals[place] = run("lone", place + 1, 3.0, status="diverged")
    found = held(row("base", -1.0), row("sft", 0.0), row("a", 1.0), lone)
    told = {(p.a, p.b): p.verdict for p in found.pairs}
    assert {verdict for pair, verdict in told.items() if "lone" in pair} == {"cannot_tell"}
    assert told["a", "base"] == told["a", "sft"] == "better"


def test_a_control_that_did_not_run_is_no_confusion() -> None:
    common = [row("base", -1.0), row("sft", 0.0), row("dpo", 1.0)]
    again = row("dpo_again", 1.0, status="failed")
    found = held(*common, again, row("wrong_sign", -1.0, control=True), controls=True)
    assert found.warnings[0].startswith("CONTROL FAILED: dpo under a second name did not run")
    assert not any("told from itself" in warning for warning in found.warnings)


@pytest.mark.parametrize(("seeds", "said"), [(1, "1 seed: there are no verdicts"), (2, "2 seeds: the verdicts take")])
def test_few_seeds_are_said(seeds: int, said: str) -> None:
    rows = [row("base", 0.0), row("sft", 0.0, seeds=seeds), row("a", 1.0, seeds=seeds)]
    comparison = Comparison(methods=(Method(name="a", loss="dpo"),), seeds=seeds)
    found = outcome(comparison, rows, command="", seconds=1.0)
    assert any(warning.startswith(said) for warning in found.warnings)
    assert seeds > 1 or {pair.verdict for pair in found.pairs} == {"cannot_tell"}


def test_sft_alone_is_a_finding() -> None:
    comparison = Comparison(methods=(Method(name="sft", loss="sft"),))
    alone = outcome(comparison, [row("base", 0.0), row("sft", 1.0)], command="", seconds=1.0)
    assert finding(alone) == ["SFT is the only method.", "It is better than the model before training."]
    failed = held(row("base", 0.0), row("sft", 1.0), row("a", 1.0, status="diverged"))
    assert finding(failed)[0].startswith("No method but SFT could be measured")
    assert finding(held(row("base", 0.0), row("sft", 1.0, status="failed")))[0].startswith("No method could be")


def test_tasks_are_listed_with_their_change() -> None:
    rows = [row("base", 0.0), row("sft", 0.0), row("a", 1.0)]
    for one, value in zip(rows, (0.25, 0.5, 0.125), strict=True):
        for result in one.finals:
            result.figures["task/arc/acc"] = value
    said = markdown(held(*rows))
    assert "| tasks (change against base) | arc/acc |" in said
    assert "| a | 0.125 (-0.125) |" in said
    assert "| base | 0.250 |" in said
    assert "arc" not in markdown(held(row("base", 0.0), row("sft", 0.0), row("a", 1.0)))


def test_other_data_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "fingerprints", lambda config: {"data": config.data.path, "weights": "w"})
    other = row("a", 1.0)
    other.config.data.path = "elsewhere"
    content = plain(held(row("base", 0.0), row("sft", 0.0), other))
    assert content["fingerprints"] == {"data": "d", "weights": "w"}
    assert content["other_fingerprints"] == {"a": {"data": "elsewhere"}}


def test_what_it_would_take_in_words() -> None:
    pair = dataclasses.replace(held(row("base", 0.0), row("sft", 0.0)).pairs[0], together=False)
    for given, said in (
        ({"seeds": 5, "prompts": None}, "5 seeds might"),
        ({"seeds": 5, "prompts": TOO_MANY + 1}, "5 seeds or more than 10,000 prompts might"),
        ({"seeds": 5, "prompts": 1200, "together": True}, "5 seeds and 1,200 prompts might"),
        ({"seeds": None, "prompts": None}, ""),
    ):
        assert say_needed(dataclasses.replace(pair, **given)) == said


def test_a_method_that_never_works_is_a_row() -> None:
    found = held(row("base", 0.0), row("sft", 0.0), row("a", 1.0), row("b", 1.0, status="diverged"))
    rows = {r["name"]: r for r in plain(found)["methods"]}
    assert rows["b"]["point"] is None
    assert found.standings[-1].name == "b"
    assert "| b | failed |" in markdown(found)


def test_nothing_to_compare_by_is_an_error() -> None:
    with pytest.raises(PrefoptError, match="loss is nan"):
        held(row("base", 0.0, status="failed"), row("a", 1.0, status="diverged"))
