"""The menu itself: no loss without its proofs, and a new one costs one file and one line."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore

import prefopt.losses
from prefopt.cli import main
from prefopt.config import options
from prefopt.losses import MENU, load_class
from prefopt.losses.registry import load
from prefopt.plugin import Audit, Data, Level, Needs, Ranking, Traits, traits
from prefopt.report import catalogue
from prefopt.testing import check_loss, evaluate, example

HERE = Path(__file__).parent


def proofs(file: str) -> Any:
    """The test module of a file of losses, or an empty one where there is none."""
    path = HERE / f"test_{file}.py"
    return importlib.import_module(f"tests.losses.test_{file}") if path.exists() else ModuleType(file)


def claims(module: Any) -> set[str]:
    """The identities that a test module proves."""
    return {test.claim for test in vars(module).values() if hasattr(test, "claim")}


def lacking() -> dict[str, set[str]]:
    """What each loss lacks of the proofs that are written for it by name.

    The kit, training and the catalogue go over the menu themselves.
    """
    missing: dict[str, set[str]] = {}
    for name, target in MENU.items():
        module, loss = proofs(target.split(":")[0]), example(load_class(name))
        reasons = getattr(module, "NOT_TESTED", {})
        found = {
            "by_hand": hasattr(module, f"test_{name}_by_hand"),
            "at_reference": hasattr(module, f"test_{name}_at_reference") or not loss.needs.reference,
            "identity": bool(catalogue.identities_with(name)),
            "parity": any(test.startswith(f"test_{name}_parity") for test in vars(module)),
        }
        lacks = {proof for proof, there in found.items() if not there and f"{name} {proof}" not in reasons}
        if lacks:
            missing[name] = lacks
    return missing


def test_no_loss_without_its_proofs() -> None:
    assert lacking() == {}


def test_a_loss_without_proofs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MENU, "unproved", "dpo:DPO")
    assert lacking() == {"unproved": {"by_hand", "at_reference", "identity", "parity"}}


@pytest.mark.parametrize("file", sorted({target.split(":")[0] for target in MENU.values()}))
def test_identities_that_are_claimed_are_proved(file: str) -> None:
    own = [name for name, target in MENU.items() if target.split(":")[0] == file]
    assert claims(proofs(file)) == {claim for name in own for claim in catalogue.card(load_class(name)).identities}


@pytest.mark.parametrize("file", sorted({target.split(":")[0] for target in MENU.values()}))
def test_reasons_name_a_loss_of_the_file_and_a_proof(file: str) -> None:
    own = {name for name, target in MENU.items() if target.split(":")[0] == file}
    for key, reason in getattr(proofs(file), "NOT_TESTED", {}).items():
        name, proof = key.split()
        assert name in own
        assert proof in ("at_reference", "parity", "optimum")
        assert reason
        assert not any(test.startswith(f"test_{name}_{proof}") for test in vars(proofs(file)))


def test_every_loss_type_of_dpo_trainer_has_its_counterpart() -> None:
    """Read from TRL's own configuration, so that a loss that it adds is noticed."""
    trl = pytest.importorskip("trl", reason="the peers extra is not installed")
    field = next(f for f in dataclasses.fields(trl.DPOConfig) if f.name == "loss_type")
    offered = set(re.findall(r"`'(\w+)'`", field.metadata["help"]))
    compared = {
        call.args[1].value
        for path in HERE.glob("test_*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "trl_dpo"
        if isinstance(call.args[1], ast.Constant)
    }
    assert offered == compared


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
    options.choices.cache_clear()
    yield
    # What all tests of a process share is left as it was found.
    sys.modules.pop("prefopt.losses.saturating", None)
    ConfigStore.instance().repo.get("loss", {}).pop("saturating.yaml", None)
    options.choices.cache_clear()


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
    audit = traits(example(load_class(name))).audit
    assert audit is not None
    if audit.level is Level.AUTHORS_CODE:
        assert re.fullmatch(r"\S+/\S+( \S+@[0-9a-f]{7}|, pull request \d+)", audit.source)
    else:
        assert audit.source


# Of these no equation's number, and no code of the authors, could be found: what was found instead.
WITHOUT_A_PLACE = {
    "bdpo": "an author's own summary, with the mixture in the denominator, and no code",
    "distill_dpo": "accounts and citations of the paper",
    "gdpo": "accounts of the paper, and code of others",
    "h_dpo": "the abstract, and code of others",
    "hypo": "an account of the paper with its formula, which names no code",
    "r_dpo": "accounts that contradict each other, so that its sign is derived",
    "soft_dpo": "as `gdpo`",
}
PLACE = re.compile(
    r"Eqs?\. |Algorithm \d|App\. |Sections? |Sec\. |@[0-9a-fv]\S+|pull request \d|PR #\d|TRL \d|Lighteval \d"
)


def test_an_audit_names_the_equation_or_the_file() -> None:
    found = {name for name in MENU if not PLACE.search(traits(example(load_class(name))).audit.source)}  # type: ignore[union-attr]
    assert found == WITHOUT_A_PLACE.keys()


NONE_FOUND = "no learning rate was found in a paper, a script or a library's example"
ADAPTERS = "published for adapters only"
NO_METHOD = "no experiment of its own: a formula of another paper's theory"
# Losses that declare no learning rates, and why; the others name where theirs were published.
WITHOUT_RATES = {
    "aot": NONE_FOUND,
    "aot_unpaired": NONE_FOUND,
    "bdpo": NONE_FOUND,
    "bpo": ADAPTERS,
    "c2_dpo": NONE_FOUND,
    "chi_po": NONE_FOUND,
    "distill_dpo": NONE_FOUND,
    "focal_dpo": NONE_FOUND,
    "gdpo": NONE_FOUND,
    "gpo": NONE_FOUND,
    "h_dpo": NONE_FOUND,
    "hypo": NONE_FOUND,
    "irpo": NONE_FOUND,
    "ld_dpo": NONE_FOUND,
    "li_po": NONE_FOUND,
    "minor_dpo": NONE_FOUND,
    "mix": "those of its terms",
    "modpo": ADAPTERS,
    "pmpo": NONE_FOUND,
    "pointwise_bce": NO_METHOD,
    "rm_list": NO_METHOD,
    "robust_dpo": "1e-3, but no source says of which model",
    "soft_dpo": NONE_FOUND,
    "spo": NONE_FOUND,
}


def test_a_loss_declares_its_learning_rates_or_is_listed() -> None:
    rates = {name: traits(example(load_class(name))).learning_rates for name in MENU}
    assert {name for name, declared in rates.items() if declared is None} == WITHOUT_RATES.keys()
    for name, declared in rates.items():
        assert declared is None or (1e-8 < declared.low <= declared.high < 1e-3 and declared.source), name


@pytest.mark.parametrize("name", MENU)
def test_what_is_said_of_trl_names_a_version(name: str) -> None:
    """Its conventions, a loss's name by name, changed between versions."""
    said = " ".join((load_class(name).__doc__ or "").partition("Differences:")[2].split())
    assert "TRL" not in said or re.search(r"TRL (?:from |up to )?\d|TRL PR #\d", said), said


def test_a_claim_without_a_source_or_a_date_is_refused() -> None:
    with pytest.raises(ValueError, match="without a source"):
        Audit(Level.DERIVED, " ", "2026-11-29")
    with pytest.raises(ValueError, match="isoformat"):
        Audit(Level.DERIVED, "Eq. 7", "yesterday")


def test_a_plugin_that_declares_nothing_has_neutral_traits() -> None:
    undeclared = SimpleNamespace(needs=Needs(data=Data.UNPAIRED, reference=True))
    assert traits(undeclared) == Traits(needs=undeclared.needs, ranking=Ranking.POINTWISE)


def test_mix_derives_its_traits_from_its_terms() -> None:
    assert traits(load("mix")).ranking is Ranking.PAIRWISE
    assert traits(load("mix")).chosen_rises is True  # its likelihood term
    assert traits(load("mix", terms={"dpo": 1.0, "sft": -1.0})).chosen_rises is None
    assert traits(load("mix", terms={"bco_pair": 1.0, "sft": 1.0})).ranking is Ranking.POINTWISE
    assert traits(load("mix", terms={"plackett_luce": 1.0, "rrhf": 1.0})).ranking is Ranking.LISTWISE
