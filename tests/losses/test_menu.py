"""The menu itself: no loss without its proofs, and a new one costs one file and one line."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import prefopt.losses
from prefopt.cli import main
from prefopt.losses import MENU, load_class
from prefopt.losses.registry import load
from prefopt.plugin import Audit, Data, Needs, Ranking, Traits, traits
from prefopt.report import catalogue
from prefopt.testing import check_loss, evaluate, example
from tests.losses import test_optima, test_trl_parity

HERE = Path(__file__).parent

# Losses that TRL 1.16 has not; the rest have a parity test.
NOT_IN_TRL = {
    *("alpha_dpo", "amapo", "bco", "bdpo", "beta_dpo", "cal_dpo", "chi_po", "csft", "distill_dpo", "dpo_shift", "dpop"),
    *("dr_dpo", "focal_dpo", "gpo", "hypo", "info_nca", "ipo_sum", "li_po", "mallows_dpo", "minor_dpo", "nca_list"),
    *("npo", "odpo", "plackett_luce", "pro", "r_dpo", "rainbow_po", "re_po", "rebel", "reward_aware_po", "rpo_sft"),
    *("rrhf", "sam_po", "simnpo", "simper", "slic_hf", "sppo_soft", "tdpo1", "tdpo2", "unlikelihood"),
}


def names_in(module: object) -> set[str]:
    """Every string constant of a test module."""
    tree = ast.parse(Path(str(module.__file__)).read_text())  # type: ignore[attr-defined]
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def worked_by_hand() -> set[str]:
    """The losses that have a test `test_NAME_by_hand`."""
    found = set()
    for path in HERE.glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_by_hand"):
                found.add(node.name.removeprefix("test_").removesuffix("_by_hand"))
    return found


def lacking() -> dict[str, set[str]]:
    """What each loss lacks of the proofs that are written for it by name.

    The kit, step 0, training, the identities and the catalogue go over the menu themselves.
    """
    by_hand, parity = worked_by_hand(), names_in(test_trl_parity)
    missing: dict[str, set[str]] = {}
    for name in MENU:
        if name not in by_hand:
            missing.setdefault(name, set()).add("numbers worked by hand")
        if (name in parity) == (name in NOT_IN_TRL):
            missing.setdefault(name, set()).add("parity with TRL, or a place in NOT_IN_TRL")
    return missing


def test_no_loss_without_its_proofs() -> None:
    assert lacking() == {}


def test_a_loss_without_proofs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MENU, "unproved", "dpo:DPO")
    assert lacking() == {"unproved": {"numbers worked by hand", "parity with TRL, or a place in NOT_IN_TRL"}}


def test_losses_without_a_finite_optimum_are_said_to_have_none() -> None:
    told = test_optima.__doc__ or ""
    assert all(f"`{name}`" in told for name in ("kto", "kto_zero", "apo_zero", "apo_down", "hinge", "unlikelihood"))


def test_the_menu_is_in_order_and_names_each_class_once() -> None:
    assert list(MENU) == sorted(MENU)
    assert len(set(MENU.values())) == len(MENU)
    for name, target in MENU.items():
        assert load_class(name).__name__ == target.split(":")[1]
        assert getattr(prefopt.losses, target.split(":")[1]) is load_class(name)


def test_every_file_of_losses_is_on_the_menu() -> None:
    files = {path.stem for path in Path(prefopt.losses.__file__).parent.glob("[!_]*.py")} - {"registry"}
    assert files == {target.split(":")[0] for target in MENU.values()}


NEW_LOSS = '''
"""Saturating DPO, for a test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from prefopt.plugin import Data, LossOutput, Needs, PairLogps, require


@dataclass(frozen=True, kw_only=True)
class Saturating:
    r"""Probability of the wrong preference.

    L = sigmoid(-beta * (rho_w - rho_l))

    Value at policy = reference: 1/2.

    Differences: made up.
    """

    paper: ClassVar[str] = "https://example.org/saturating"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=torch.sigmoid(rejected - chosen), chosen_reward=chosen.detach(), rejected_reward=rejected.detach()
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return 0.5
'''


@pytest.fixture
def one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All that adding a loss takes: its file in the folder of losses, its line in the menu."""
    (tmp_path / "saturating.py").write_text(NEW_LOSS.lstrip())
    monkeypatch.setattr(prefopt.losses, "__path__", [*prefopt.losses.__path__, str(tmp_path)])
    monkeypatch.setitem(MENU, "saturating", "saturating:Saturating")
    importlib.invalidate_caches()
    yield
    sys.modules.pop("prefopt.losses.saturating", None)


@pytest.mark.usefixtures("one_file_and_one_line")
def test_a_loss_costs_one_file_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The kit, the menu, its JSON, the configuration, mixes and the catalogue then know it."""
    assert [check for check in check_loss(load("saturating")) if not check.ok] == []
    value = evaluate(load("saturating"), chosen=[-1.0], rejected=[-1.0], ref_chosen=[-1.0], ref_rejected=[-1.0])
    assert value == [0.5]
    assert main(["losses", "--json"]) == 0
    assert "saturating" in {entry["name"] for entry in json.loads(capsys.readouterr().out)}
    assert main(["losses", "check", "saturating"]) == 0
    assert "## saturating" in catalogue.page()
    assert catalogue.picture("saturating") is not None
    assert load("mix", terms={"saturating": 1.0, "sft": 0.1}).needs.reference
    from prefopt.config.compose import compose

    assert compose(["loss=saturating", "loss.beta=0.3"]).loss == load("saturating", beta=0.3)


@pytest.mark.usefixtures("one_file_and_one_line")
def test_and_it_is_then_asked_for_its_proofs() -> None:
    assert set(lacking()) == {"saturating"}


def test_contributing_shows_how() -> None:
    text = (HERE.parents[1] / "CONTRIBUTING.md").read_text()
    assert "prefopt/losses/" in text
    assert '"myloss": "myloss:MyLoss",' in text
    assert "prefopt losses check myloss" in text


@pytest.mark.parametrize("name", MENU)
def test_every_loss_declares_how_far_it_was_checked(name: str) -> None:
    assert isinstance(traits(example(load_class(name))).audit, Audit)


def test_a_plugin_that_declares_nothing_has_neutral_traits() -> None:
    undeclared = SimpleNamespace(needs=Needs(data=Data.UNPAIRED, reference=True))
    assert traits(undeclared) == Traits(needs=undeclared.needs, ranking=Ranking.POINTWISE)


def test_mix_derives_its_traits_from_its_terms() -> None:
    assert traits(load("mix")).ranking is Ranking.PAIRWISE
    assert traits(load("mix")).chosen_rises is True  # its likelihood term
    assert traits(load("mix", terms={"dpo": 1.0, "sft": -1.0})).chosen_rises is None
    assert traits(load("mix", terms={"bco_pair": 1.0, "sft": 1.0})).ranking is Ranking.POINTWISE
    assert traits(load("mix", terms={"plackett_luce": 1.0, "rrhf": 1.0})).ranking is Ranking.LISTWISE
