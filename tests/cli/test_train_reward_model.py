"""`prefopt train loss=bradley_terry`: what a reward model's run leaves behind, and its use as a reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prefopt.cli import main
from prefopt.models import export_folder
from prefopt.models.export_folder import ExportCheck
from tests.cli.conftest import Run, tmp_run


@pytest.fixture(scope="module")
def reward_runs(model_folder: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs, by what was trained."""
    made = {}
    for peft in ("none", "lora"):
        run = tmp_run(model_folder, pairs_file, tmp_path_factory)
        assert run("loss=bradley_terry", f"peft={peft}", "trainer.learning_rate=1e-2", "trainer.max_steps=6") == 0
        made[peft] = run.out
    return made


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_a_run_says_how_well_it_ranks(reward_runs: dict[str, Path], peft: str) -> None:
    run = reward_runs[peft]
    after = summary_of(run)["reward_model"]["after"]
    rows = [json.loads(line) for line in (run / "heldout.jsonl").read_text().splitlines()]
    margins = np.array([row["chosen"]["after"] - row["rejected"]["after"] for row in rows])
    assert after["accuracy"]["value"] == pytest.approx(np.heaviside(margins, 0.5).mean())
    assert after["ties"]["value"] == (margins == 0).mean()
    assert sum(bin["count"] for bin in after["calibration"]) == len(margins) == 8
    assert set(after["by_length"]) <= {"longer", "shorter", "same"}
    assert json.loads((run / "final" / "reward_model.json").read_text())["score"] == pytest.approx(after["score"])
    page = (run / "report.html").read_text()
    assert "The reward model on held-out records" in page
    assert "Calibration" in page
    assert "Log-prob of chosen" not in page
    assert (run / "samples.jsonl").read_text() == ""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not [name for m in metrics for name in m if "logps" in name or "ratio" in name]


def test_plain_transformers_loads_it(reward_runs: dict[str, Path]) -> None:
    final = reward_runs["none"] / "final"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    row = json.loads((reward_runs["none"] / "heldout.jsonl").read_text().splitlines()[0])
    ids = None
    for i in range(40):
        text = f"Is {i} even?{i % 2 == 0}."
        tokens = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            score = model(input_ids=torch.tensor([tokens])).logits.item()
        ids = i if abs(score - row["chosen"]["after"]) < 1e-4 else ids
    assert ids is not None, "the held-out score is that of a text with its end token"


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_it_scores_samples_at_once(run: Run, reward_runs: dict[str, Path], peft: str) -> None:
    given = ["loss=rloo", "source=rollouts", f"reward={reward_runs[peft]}", "rollout.max_new_tokens=4"]
    assert run(*given, "batch.records=3", "trainer.max_steps=2") == 0
    rows = [json.loads(line) for line in (run.out / "rollouts.jsonl").read_text().splitlines()]
    assert len({row["reward"] for row in rows}) > 4
    assert "reward_change" in summary_of(run.out)["texts"]


def test_an_ensemble_is_an_option(run: Run, reward_runs: dict[str, Path]) -> None:
    both = f"reward={{mean:[{reward_runs['none']},{reward_runs['lora']}],variance:0.5}}"
    given = ["loss=rloo", "source=rollouts", both, "rollout.max_new_tokens=4", "batch.records=3"]
    assert run(*given, "trainer.max_steps=1", "data.eval_records=0") == 0
    assert main(["rerun", str(run.out), "--output-dir", str(run.out.parent / "again")]) == 0


def test_a_reward_model_is_trained_further(run: Run, reward_runs: dict[str, Path]) -> None:
    assert run("loss=rm_list", f"model.path={reward_runs['none'] / 'final'}", "trainer.max_steps=1") == 0
    before = summary_of(run.out)["reward_model"]["before"]
    assert before["score"] == pytest.approx(summary_of(reward_runs["none"])["reward_model"]["after"]["score"], abs=1e-5)


def test_a_reference_is_refused(run: Run, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("loss=bradley_terry", f"model.reference={model_folder}") == 2
    assert "a reward model, which has no reference" in capsys.readouterr().err.replace("\n", " ")


def test_eval_of_a_reward_model(
    reward_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = reward_runs["lora"]
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"]["value"] == summary_of(run)["reward_model"]["after"]["accuracy"]["value"]
    assert found["data"]["held_out"]
    rows = [
        {"prompt": f"Is {i} even?", "chosen": f"{i % 2 == 0}.", "rejected": "No.", "subset": "xy"[i % 2]}
        for i in range(6)
    ]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["eval", str(run), f"rewardbench={tmp_path / 'bench.jsonl'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"accuracy", "ties", "accuracy_strict"} <= found.keys()
    assert found["count"] == 6
    assert {name: one["count"] for name, one in found["subsets"].items()} == {"x": 3, "y": 3}
    assert main(["eval", str(run), f"rewardbench={tmp_path / 'bench.jsonl'}"]) == 0
    assert "a tie is half" in capsys.readouterr().out


def test_a_policy_has_no_scores_and_a_reward_model_no_texts(
    reward_runs: dict[str, Path], model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "nothing", "rewardbench=x.jsonl"]) == 2  # and no hub is asked
    assert "there is no folder nothing; a reward model on the hub is OWNER/NAME" in capsys.readouterr().err
    assert main(["eval", str(model_folder), "rewardbench=x.jsonl"]) == 2
    assert "rewardbench=... is for reward models" in capsys.readouterr().err
    assert main(["sample", str(reward_runs["none"]), "--prompt", "Hi"]) == 2
    assert "is a reward model, which predicts no tokens" in capsys.readouterr().err


@pytest.mark.parametrize("peft", ["none", "lora"])
@pytest.mark.slow
def test_an_export_scores_the_same_in_a_fresh_process(reward_runs: dict[str, Path], peft: str, tmp_path: Path) -> None:
    """At batch 1 and 8, padded left and right, without prefopt."""
    from prefopt.models.reward_model import open_reward_model
    from prefopt.runs.export import export

    made = export(reward_runs[peft], tmp_path / "out")
    assert made.check.error <= made.check.tolerance == 1e-4
    assert (tmp_path / "out" / "reward_model.json").exists()
    assert not any("adapter" in file.name for file in (tmp_path / "out").iterdir())
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    ours, _ = open_reward_model(str(reward_runs[peft] / "final"))
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        assert model(input_ids=ids).logits.item() == pytest.approx(ours(input_ids=ids).logits.item(), abs=1e-4)


def test_the_card_of_a_reward_model(
    reward_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_folder, "check", lambda *_: ExportCheck(tokens=8, error=0.0, tolerance=1e-4))
    assert main(["export", str(reward_runs["none"]), "--to", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "AutoModelForSequenceClassification" in card
    assert "a tie is half" in card
    assert "{{" not in card


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize("peft", ["none", "lora"])
def test_values_start_as_a_reward_model(
    peft: str, reward_runs: dict[str, Path], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["loss=ppo", "source=rollouts", f"reward={reward_runs[peft]}", f"peft={peft}", "trainer.max_steps=2",
             "rollout.max_new_tokens=4", "batch.records=2", "evaluation.texts=0"]  # fmt: skip
    first: list[dict[str, Any]] = []
    for more in ([], [f"model.value_model={reward_runs[peft]}/final"]):
        out = run.out.parent / f"out_{len(first)}"
        assert run(*given, *more, f"output_dir={out}") == 0
        first.append(json.loads((out / "metrics.jsonl").read_text().splitlines()[0]))
    fresh, started = first
    assert fresh["reward"] == started["reward"], "the same texts"
    assert fresh["loss"] == pytest.approx(0, abs=1e-6), "a text that was cut off has the value 0, and so each token"
    assert started["loss"] > 1e-3, "the values of tokens are not that behind the text"
    capsys.readouterr()
    assert run(*given, f"model.value_model={reward_runs[peft]}") == 2
    assert "is no reward model: give final/ of a run with loss=bradley_terry" in capsys.readouterr().err
