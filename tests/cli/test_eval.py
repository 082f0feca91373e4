"""`prefopt eval`: the figures of a run, and of any model against any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.cli import main
from prefopt.runs.run_folder import open_model

Capture = pytest.CaptureFixture[str]


def evaluated(capsys: Capture, *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["eval", *argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_eval_of_a_run_gives_what_the_run_found(tuned: Path, model_folder: Path, capsys: Capture) -> None:
    found = evaluated(capsys, str(tuned))
    rows = [json.loads(line) for line in (tuned / "heldout.jsonl").read_text().splitlines()]
    change = np.array([row["chosen"]["after"] - row["chosen"]["before"] for row in rows])
    assert found["data"]["records"] == 8
    assert found["data"]["held_out"]
    assert found["against"] == str(model_folder)
    assert found["differences"]["logps/chosen"]["value"] == pytest.approx(change.mean(), abs=1e-4)
    assert found["differences"]["logps/chosen"]["se"] == pytest.approx(change.std(ddof=1) / 8**0.5, abs=1e-4)
    summary = json.loads((tuned / "summary.json").read_text())
    assert found["figures"]["accuracies/logps"]["value"] == summary["after"]["accuracies/logps"]
    assert found["texts"]["kl"]["value"] == pytest.approx(summary["after"]["kl"], abs=1e-4)


def test_eval_of_any_model_against_any_other(
    tuned: Path, model_folder: Path, pairs_file: Path, capsys: Capture
) -> None:
    """The other way round every difference changes its sign; nothing is held out, and that is said."""
    data = (f"data.path={pairs_file}", "evaluation.max_new_tokens=4", "evaluation.kl_prompts=4")
    there = evaluated(capsys, str(tuned), f"against={model_folder}", *data)
    back = evaluated(capsys, str(model_folder), f"against={tuned}", *data)
    assert there["data"] == {"path": str(pairs_file), "records": 40, "held_out": False}
    for name in ("margins/logps", "logps_mean/rejected", "accuracies/logps"):
        assert there["differences"][name]["value"] == pytest.approx(-back["differences"][name]["value"], abs=1e-9)
    assert there["figures"] == back["against_figures"]


def test_eval_shows_a_table(tuned: Path, model_folder: Path, capsys: Capture) -> None:
    assert main(["eval", str(tuned), f"against={tuned}/final"]) == 0
    out = capsys.readouterr().out
    assert "8 held-out records" in out
    assert "Log-prob of chosen, nats" in out
    assert "tie" in out  # with itself
    assert "KL to it: 0.00 ± 0.00" in out or "KL to it: 0.000 ± 0.000" in out


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_eval_of_labels_and_of_an_adapter(model_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """A fresh adapter changes nothing: its model ties with the one below it."""
    peft = pytest.importorskip("peft")
    file = tmp_path / "labels.jsonl"
    rows = [{"prompt": f"Is {i} even?", "completion": f"{i % 2 == 0}.", "label": i % 3 == 0} for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, _ = open_model(str(model_folder))
    model.config._name_or_path = str(model_folder)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(tmp_path / "adapter")
    found = evaluated(
        capsys, str(tmp_path / "adapter"), f"against={model_folder}", f"data.path={file}", "evaluation.max_new_tokens=4"
    )
    assert found["differences"]["logps/chosen"]["value"] == pytest.approx(0, abs=1e-5)
    assert found["figures"]["logps/chosen"]["count"] == 4
    assert found["figures"]["logps/rejected"]["count"] == 8
    assert "margins/logps" not in found["figures"]


def test_a_misspelt_run_is_not_looked_for_on_the_hub(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", f"{finished}t"]) == 2
    assert capsys.readouterr().err == f"prefopt: there is no run {finished}t; did you mean '{finished}'?\n"


def test_a_folder_of_runs_and_a_part_of_one_are_named(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(finished.parent)]) == 2
    assert f"is not the folder of a run or a model; the newest run in it is {finished}" in capsys.readouterr().err
    assert main(["report", str(finished / "final")]) == 2
    assert "it is part of the run " in capsys.readouterr().err


def test_the_model_of_a_world_is_of_the_world_that_the_run_was_on(
    world_run: Path, model_folder: Path, pairs_file: Path, capsys: Capture
) -> None:
    truth = evaluated(capsys, str(world_run), f"against={model_folder}")
    assert evaluated(capsys, str(world_run)) == {**truth, "against": "world"}
    other = evaluated(capsys, str(world_run), f"data.path={pairs_file}", "data.eval_records=8")
    assert (other["against"], other["data"]["path"]) == ("world", str(pairs_file))
    itself = evaluated(capsys, "world", "against=world/base", "data.path=world", "data.world.seed=3",
                       "data.eval_records=8", "evaluation.max_new_tokens=4")  # fmt: skip
    assert itself["differences"]["logps/chosen"]["value"] == 0
