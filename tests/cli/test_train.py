"""`prefopt train`: what a run leaves behind, and that one override changes one thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.config.compose import compose
from prefopt.runs import run as running
from tests.cli.conftest import Run

CORE = ["sft", "dpo", "ipo", "ipo_sum", "kto", "orpo", "simpo"]


SHARED_METRICS = {
    "loss", "grad_norm", "learning_rate", "logps/chosen", "logps_mean/chosen", "lengths/chosen",
}  # fmt: skip


PAIR_METRICS = {
    "logps/rejected", "logps_mean/rejected", "lengths/rejected", "accuracies/logps", "accuracies/logps_mean",
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "rewards/ties",
}  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("loss", CORE)
def test_a_run_leaves_what_other_tools_build_on(run: Run, loss: str) -> None:
    assert run(f"loss={loss}") == 0
    metrics = lines(run.out / "metrics.jsonl")
    training = [m for m in metrics if "learning_rate" in m]
    assert [m["step"] for m in training] == [1, 2, 3, 4]
    assert set(training[0]) >= SHARED_METRICS | (
        PAIR_METRICS if loss != "sft" else set()
    )  # SFT has no implicit reward and sees one side
    evaluated = [m for m in metrics if "eval_loss" in m]
    assert [m["step"] for m in evaluated] == [0, 4]
    assert {k for m in evaluated for k in m} >= {f"eval_{k}" for k in PAIR_METRICS if not k.startswith("rewards")}
    config = yaml.safe_load((run.out / "config.yaml").read_text())
    assert config["loss"]["name"] == loss
    assert config["trainer"]["max_steps"] == 4
    summary = json.loads((run.out / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["counts"]["train"] == 32
    assert summary["counts"]["eval"] == 8
    assert summary["after"]["kl"] >= 0
    assert summary["layout"]["layout"] == "tree"
    assert len(lines(run.out / "samples.jsonl")) == 3
    assert json.loads((run.out / "manifest.json").read_text())["versions"]["torch"] == torch.__version__
    model = AutoModelForCausalLM.from_pretrained(run.out / "final")
    ids = AutoTokenizer.from_pretrained(run.out / "final")("Is 3 even?", return_tensors="pt")
    assert torch.isfinite(model(**ids).logits).all()
    assert not list((run.out / "final").glob("*.bin")), "nothing saved is a pickle"


def test_only_the_loss_changes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods, one override apart: the same token ids in the same order, initial weights and dtypes."""
    seen: list[dict[str, Any]] = []
    library_run = running.run

    def watch(config: Any, **kw: Any) -> Any:
        original = running.train

        def spy(model: Any, loss: Any, records: Any, **given: Any) -> Any:
            weights = {n: (p.dtype, p.detach().clone()) for n, p in model.named_parameters()}
            built: list[list[str]] = []
            result = None

            from prefopt.train.step import Step

            step = Step.__call__

            def recorded(self: Any, share: Any, number: int) -> Any:
                built.append([f.id for w in share.work for f in w.facts])
                return step(self, share, number)

            with monkeypatch.context() as patch:
                patch.setattr(Step, "__call__", recorded)
                result = original(model, loss, records, **given)
            tokens = {r.id: (r.prompt.tobytes(), [c.tobytes() for c in r.completions]) for r in records}
            seen.append({"weights": weights, "tokens": tokens, "batches": built, "trainer": given["learning_rate"]})
            return result

        with monkeypatch.context() as patch:
            patch.setattr(running, "train", spy)
            return library_run(config, **kw)

    monkeypatch.setattr(running, "run", watch)
    for loss in ("dpo", "simpo", "kto", "sft"):
        assert run(f"loss={loss}", f"output_dir={run.out}-{loss}") == 0
    first = seen[0]
    for other in seen[1:]:
        assert other["tokens"] == first["tokens"]
        assert other["batches"] == first["batches"]
        assert other["trainer"] == first["trainer"]
        for name, (dtype, weight) in first["weights"].items():
            assert other["weights"][name][0] == dtype
            assert torch.equal(other["weights"][name][1], weight)


def test_hyperparameters_come_from_the_command_line(run: Run) -> None:
    assert run("loss=simpo", "loss.beta=2.5", "loss.gamma_beta_ratio=0.3") == 0
    config = yaml.safe_load((run.out / "config.yaml").read_text())
    assert config["loss"] == {"name": "simpo", "beta": 2.5, "gamma_beta_ratio": 0.3}


def test_a_path_of_ones_own_does_not_get_the_worlds_settings(model_folder: Path, pairs_file: Path) -> None:
    own = compose([f"model.path={model_folder}", f"data.path={pairs_file}"])
    assert own.trainer["learning_rate"] == 1e-6
    assert own.trainer["max_steps"] == -1
    assert own.batch.records == 32
    assert own.data.template == "auto"
    world = compose([])
    assert world.trainer["learning_rate"] == 1e-3
    assert world.batch.records == 128


def test_what_the_last_texts_give_away_is_in_every_record(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """By default texts are measured after training alone: a sentinel's word on them counts there, too."""
    assert run("sentinels.kl=1e-9", "trainer.learning_rate=1e-2") == 0
    told = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told if "sentinels/kl" in line] == [4]
    assert "a text away from its start" in capsys.readouterr().out
    assert run("sentinels.kl=1e-9", "sentinels.stop=true", "trainer.learning_rate=1e-2", f"output_dir={run.out}-2") == 3
    assert "the run has ended and is whole" in capsys.readouterr().err
    assert json.loads(Path(f"{run.out}-2", "summary.json").read_text())["sentinels"][0]["sentinel"] == "kl"
