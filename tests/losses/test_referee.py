"""The referee on TRL as it is, and on copies of TRL that were broken on purpose."""

from __future__ import annotations

import inspect
import json
from functools import partial
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from benchmarks.referee import PAGE, RESULTS, page, reproduction
from prefopt.cli import main
from prefopt.losses import MENU
from prefopt.testing.peers.shared import log_ratios
from prefopt.testing.referee import Case, Ruling, Way, judge
from prefopt.testing.vectors import vectors

trl = pytest.importorskip("trl", reason="the peers extra is not installed")
from prefopt.testing.peers.trl_losses import PEER  # noqa: E402  (it imports TRL)


def ruling(name: str) -> Ruling:
    return judge(PEER, vectors(name))


@pytest.mark.parametrize(
    "name", ["dpo", "hinge", "ipo", "kto", "ld_dpo", "aot", "sft_token_mean", "robust_dpo", "bradley_terry_margin"]
)
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
        ("tpo", "token mean"),
        ("mix", "threshold of 0; token mean"),
        ("rloo", "ratio clipped at 1 ± 0.2; mean over all samples of the batch; not exact at extremes"),
        ("grpo", "mean over all samples of the batch; not exact at extremes"),
    ],
)
def test_trl_differs_by_a_known_convention(name: str, convention: str) -> None:
    found = ruling(name)
    assert (found.verdict, found.convention) == ("differs", convention)


# Our names of losses of each trainer that TRL exports; DPO's loss types are compared with its configuration in
# test_menu.py.
OF_TRAINER = {
    "DPOTrainer": {"dpo", "tr_dpo", "wpo", "ld_dpo", "f_dpo", "mix"},
    "KTOTrainer": {"kto", "kto_zero"},
    "GRPOTrainer": {"grpo", "dr_grpo"},
    "RLOOTrainer": {"rloo"},
    "RewardTrainer": {"bradley_terry", "bradley_terry_margin"},
    "SFTTrainer": {"sft_token_mean", "dft"},
    "DistillationTrainer": set(),  # from a teacher's distributions: no loss of this kind is in the menu
}


def test_every_trainer_of_trl_is_judged() -> None:
    """A trainer that TRL adds is noticed, and so is a loss that no adapter calls."""
    assert {name for name in dir(trl) if name.endswith("Trainer")} == OF_TRAINER.keys()
    of_experiments = {"cpo", "cpo_simpo", "simpo", "alpha_po", "orpo", "tpo", "tpo_l"}
    assert set().union(*OF_TRAINER.values()) | of_experiments <= PEER.keys()
    assert set(MENU) >= PEER.keys()


def test_a_mistake_fails_by_name_and_not_as_a_convention() -> None:
    """A length penalty with a minus, from a library whose log-ratios and lengths are right."""

    def penalty(case: Case, sign: int) -> Tensor:
        chosen, rejected = log_ratios(case.inputs)
        longer = (case.inputs["chosen_num_tokens"] - case.inputs["rejected_num_tokens"]).to(chosen)
        given = case.hyperparameters
        return -F.logsigmoid(given["beta"] * (chosen - rejected) + sign * given["alpha"] * longer)

    ways = (Way(partial(penalty, sign=-1)), Way(partial(penalty, sign=-1), "a minus", partial(penalty, sign=-1), True))
    found = judge({"r_dpo": ways}, vectors("r_dpo"))
    assert (found.verdict, found.convention) == ("fails", "a minus")
    assert found.max_error is not None
    assert found.max_error > 0.01  # from the method, not from the mistake
    assert judge({"r_dpo": (Way(partial(penalty, sign=1)),)}, vectors("r_dpo")).verdict == "pass"


def test_whatever_fails_in_the_matrix_has_a_short_reproduction() -> None:
    judged = {name: entry for name, entry in json.loads(RESULTS.read_text()).items() if "error" not in entry}
    failures = {(name, loss): entry["reproduced"] for name, entry in judged.items() for loss, ruling in
                entry["losses"].items() if ruling["verdict"] == "fails"}  # fmt: skip
    assert len(failures) >= 6
    for (name, loss), printed in failures.items():
        peer = name.split(" ")[0].lower().replace("-", "_")
        assert len(reproduction(peer, loss).read_text().splitlines()) <= 20
        assert "theirs" in printed[loss]


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
