"""The referee on TRL as it is, and on copies of TRL that were broken on purpose."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from benchmarks.referee import PAGE, RESULTS, page
from prefopt.cli import main
from prefopt.testing.referee import Ruling, judge
from prefopt.testing.vectors import vectors

trl = pytest.importorskip("trl", reason="the peers extra is not installed")
from prefopt.testing.peers.trl_losses import PEER  # noqa: E402  (it imports TRL)


def ruling(name: str) -> Ruling:
    return judge(PEER, vectors(name))


@pytest.mark.parametrize("name", ["dpo", "hinge", "ipo", "kto", "ld_dpo", "aot", "sft_token_mean", "robust_dpo"])
def test_trl_passes(name: str) -> None:
    assert ruling(name).verdict == "pass"


@pytest.mark.parametrize(
    ("name", "convention"),
    [
        ("bco_pair", "threshold of 0"),
        ("irpo", "token mean"),
        ("simpo", "γ absolute"),
        ("cpo_simpo", "γ absolute; token mean"),
        ("wpo", "weight not limited to 1"),
    ],
)
def test_trl_differs_by_a_known_convention(name: str, convention: str) -> None:
    found = ruling(name)
    assert (found.verdict, found.convention) == ("differs", convention)


def test_a_loss_that_trl_lacks_is_absent() -> None:
    assert ruling("nca_list").verdict == "absent"


BROKEN = {
    "sign": ("dpo", "-F.logsigmoid(self.beta * delta_score)", "F.logsigmoid(self.beta * delta_score)", "fails"),
    "reduction": ("dpo", "per_sequence_loss.mean()", "per_sequence_loss.sum()", "fails"),
    "halved": ("ipo", "per_sequence_loss.mean()", "per_sequence_loss.mean() / 2", "differs"),
    "option ignored": ("robust_dpo", "(1 - 2 * self.label_smoothing)", "0.8", "fails"),
    "method ignored": ("hinge", "torch.relu(1 - self.beta * delta_score)",
                       "-F.logsigmoid(self.beta * delta_score)", "fails"),
    "wrong gradient": ("dpo", "-F.logsigmoid(self.beta * delta_score)",
                       "-F.logsigmoid(self.beta * delta_score.detach()) + 0 * delta_score", "fails"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_broken_copy_of_trl_is_caught(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, right, wrong, verdict = BROKEN[mistake]
    assert ruling(name).verdict == "pass"
    source = inspect.cleandoc("\n" + inspect.getsource(trl.DPOTrainer._compute_loss))
    assert right in source
    copy: dict[str, Any] = {}
    exec(source.replace(right, wrong), dict(vars(inspect.getmodule(trl.DPOTrainer))), copy)
    monkeypatch.setattr(trl.DPOTrainer, "_compute_loss", copy["_compute_loss"])
    found = ruling(name)
    assert found.verdict == verdict
    assert found.convention == ("halved" if verdict == "differs" else None)


def test_the_verb(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("prefopt.testing.referee.MENU", ["dpo", "nca_list"])
    assert main(["referee", "TRL", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["dpo"]["verdict"] == "pass"
    assert found["dpo"]["max_error"] < 1e-5  # the float32 cases included
    assert found["nca_list"]["verdict"] == "absent"
    assert main(["referee", "tlr"]) == 2
    assert "trl" in capfd.readouterr().err


def test_the_matrix_in_the_documentation_is_that_of_the_results() -> None:
    assert page(json.loads(RESULTS.read_text())) == PAGE.read_text()
