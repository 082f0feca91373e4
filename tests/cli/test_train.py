"""`prefopt train`: what a run leaves behind, and that one override changes one thing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.runs import run as running
from prefopt.runs.run import run as run_library
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
            return run_library(config, **kw)

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


def test_multirun_gives_each_method_its_folder(run: Run) -> None:
    given = [g for g in run.given if not g.startswith("output_dir")]
    from prefopt.cli import main

    assert main(["train", "-m", *given, "loss=dpo,simpo", f"hydra.sweep.dir={run.out}"]) == 0
    assert sorted(p.name for p in run.out.iterdir() if p.is_dir()) == ["0-dpo", "1-simpo"]
    assert all((run.out / d / "summary.json").exists() for d in ("0-dpo", "1-simpo"))


def test_goes_on_from_a_checkpoint_and_refuses_a_finished_folder(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trainer.save_strategy=steps", "trainer.save_steps=2") == 0
    whole = [m for m in lines(run.out / "metrics.jsonl") if "learning_rate" in m]
    assert run("trainer.save_strategy=steps", "trainer.save_steps=2") == 2
    assert "already has a finished run" in capsys.readouterr().err
    (run.out / "summary.json").unlink()
    import shutil

    shutil.rmtree(run.out / "checkpoint-4")
    assert run("trainer.save_strategy=steps", "trainer.save_steps=2", "resume=never") == 2
    assert run("trainer.save_strategy=steps", "trainer.save_steps=2") == 0
    again = [m for m in lines(run.out / "metrics.jsonl") if "learning_rate" in m]
    assert [m["step"] for m in again] == [1, 2, 3, 4]
    assert [m["loss"] for m in again] == [m["loss"] for m in whole]


def test_exit_codes_of_the_real_command(run: Run) -> None:
    def command(*argv: str) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-c", "import sys; from prefopt.cli import main; sys.exit(main())"]
        return subprocess.run([*call, *argv], capture_output=True, text=True, check=False)

    wrong = command("train", "loss=simpoo")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "did you mean 'simpo'?" in wrong.stderr
    unknown = command("trian")
    assert unknown.returncode == 2
    assert "did you mean 'train'?" in unknown.stderr


def test_a_path_of_ones_own_does_not_get_the_worlds_settings(model_folder: Path, pairs_file: Path) -> None:
    from prefopt.config.compose import compose

    own = compose([f"model.path={model_folder}", f"data.path={pairs_file}"])
    assert own.trainer["learning_rate"] == 1e-6
    assert own.trainer["max_steps"] == -1
    assert own.batch.records == 32
    assert own.data.template == "auto"
    world = compose([])
    assert world.trainer["learning_rate"] == 1e-3
    assert world.batch.records == 128
