"""The conformance kit: every loss of the menu passes, and it says what is wrong with one that does not."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from prefopt.cli import main
from prefopt.losses import MENU, load_class
from prefopt.losses.registry import load
from prefopt.plugin import Data, LossOutput, PairLogps
from prefopt.testing import check_loss, evaluate, example
from tests.losses.hand import LIST, PAIR
from tests.losses.names import OFFLINE


@pytest.mark.parametrize("name", MENU)
def test_every_loss_passes(name: str) -> None:
    failed = [f"{check.name}: {check.detail}" for check in check_loss(example(load_class(name))) if not check.ok]
    assert not failed


ON_LISTS = [name for name in OFFLINE if example(load_class(name)).needs.data is Data.LISTS]


@pytest.mark.parametrize("name", ON_LISTS)
def test_a_short_list_beside_a_long_one_has_its_own_value(name: str) -> None:
    ragged = {key: [*value, [*value[0], value[0][0]]] for key, value in LIST.items()}
    ragged["scores"][1][3] = 0.25
    loss = example(load_class(name))
    assert evaluate(loss, **ragged)[0] == pytest.approx(evaluate(loss, **LIST)[0])


def test_a_loss_without_a_reference_needs_none() -> None:
    bare = {name: value for name, value in PAIR.items() if not name.startswith("ref_")}
    losses = [example(cls) for cls in classes().values()]
    without = [loss for loss in losses if loss.needs.data is Data.PAIRS and not loss.needs.reference]
    assert len(without) >= 5
    for loss in without:
        assert evaluate(loss, **bare) == evaluate(loss, **PAIR)


def test_evaluate_in_three_lines() -> None:
    value = evaluate(load("dpo", beta=0.5), chosen=[-2.0], rejected=[-3.0], ref_chosen=[-2.0], ref_rejected=[-2.0])
    assert value == pytest.approx([0.4740769841801067])  # log(1 + e^-0.5)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"chosen": [-1.0]}, "needs ref_chosen"),
        ({"chosen": [-1.0], "ref_chosen": [-1.0]}, "needs rejected"),
        ({"chosne": [-1.0]}, "'chosne' is not a number of pairs data"),
        ({"chosen": -1.0}, "must be a list"),
        ({"chosen": [-1.0, -2.0], "ref_chosen": [-1.0]}, "ref_sum has shape"),
    ],
)
def test_evaluate_says_what_is_missing(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(load("dpo"), **numbers)


def test_check_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "check", "dpo", "kto", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["dpo", "kto"]
    assert all(check["ok"] for checks in found.values() for check in checks)


def test_check_command_on_a_failing_loss(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.losses.mutants import PlusRobustDPO

    monkeypatch.setattr("prefopt.losses.registry.load_class", lambda name: PlusRobustDPO)
    assert main(["losses", "check", "dpo"]) == 3
    out, err = capsys.readouterr()
    assert "value at reference" in out
    assert "1 of 1 losses failed" in err


@pytest.mark.parametrize("argv", [["check"], ["check", "dpo", "--all"], ["check", "dpoo"]])
def test_check_command_refuses(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", *argv]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def classes() -> dict[str, type[Any]]:
    return {name: load_class(name) for name in MENU}


def required(cls: type[Any]) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]


def test_menu_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "--json"]) == 0
    menu = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(MENU) <= set(menu)
    assert menu["simpo"]["hyperparameters"] == {"beta": 2.0, "gamma_beta_ratio": 0.5}
    assert menu["simpo"]["needs"]["reference"] is False
    must_be_given = {(name, key) for name, cls in classes().items() for key in required(cls)}
    assert len(must_be_given) >= 3
    assert all(menu[name]["hyperparameters"][key] is None for name, key in must_be_given)
    assert menu["kto"]["needs"]["data"] == "unpaired"
    assert menu["wpo"]["needs"]["vocab"] == ["log_sum_sq"]
    assert menu["simpo"]["ranking"] == "pairwise"
    assert menu["simpo"]["audit"] == "authors' code"
    assert menu["mix"]["ranking"] == "pairwise"


def test_menu_as_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("simpo ") and "gamma_beta_ratio=0.5" in line and "2405.14734" in line for line in lines)
    assert all(any(line.split()[:1] == [name] for line in lines) for name in MENU)


def test_a_failed_check_says_it_once_in_short_numbers() -> None:
    at_reference, gradient = (next(one for one in check_loss(WrongSign()) if one.name == name).detail
                              for name in ("value at reference", "direction"))  # fmt: skip
    assert at_reference == "seed 0: -0.693147 at policy = reference, stated 0.693147"
    assert gradient == "seed 0: the loss pulls chosen the wrong way: gradient 0.05"


class WrongSign(load_class("dpo")):  # type: ignore[misc]
    """DPO, negated."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        right: LossOutput = super().__call__(logps)
        return dataclasses.replace(right, loss=-right.loss)
