"""`prefopt.train` and `prefopt.compare` in Python: what they return shows itself; the notebook runs as committed."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

import prefopt
from prefopt.cli.notebook import TrainResult
from prefopt.data import DataConfig, prepare
from prefopt.errors import UserError
from prefopt.runs import progress
from prefopt.train import BatchConfig
from tests.data.tiny import tokenizer

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_look.ipynb"


@pytest.fixture(scope="module")
def result(model_folder: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    loss = prefopt.load("dpo")
    data = prepare(DataConfig(path=str(pairs_file), eval_records=8), tokenizer(), loss.needs.data)
    return prefopt.train(
        LlamaForCausalLM.from_pretrained(model_folder), loss, data.train, eval=data.eval, display="plain",
        output_dir=tmp_path_factory.mktemp("run"), batch=BatchConfig(records=8), max_steps=3, learning_rate=1e-2,
        warmup_steps=0,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def sketched() -> None:
    """Figures are rendered here."""


def test_a_result_shows_itself(result: TrainResult) -> None:
    table = result.table()
    assert list(table.columns) == ["base", "tuned", "change"]
    assert table.loc["rewards/margins", "tuned"] == result.after["rewards/margins"]
    assert table.loc["rewards/margins", "change"] == pytest.approx(result.after["rewards/margins"], abs=1e-6)
    assert repr(result).splitlines()[0].startswith("DPO: 3 steps in ")
    assert "rewards/margins" in result._repr_html_()
    assert result.log().index.tolist() == [1, 2, 3]


def test_a_result_draws_itself(result: TrainResult, tmp_path: Path) -> None:
    plot = result.plot("rewards/chosen", "rewards/rejected")
    assert repr(plot).startswith("DPO: rewards/chosen 0 to ")
    assert plot._repr_svg_().startswith("<svg")
    plot.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "rewards/margins" in repr(result.plot())
    with pytest.raises(UserError, match="rewards/margin was not logged; did you mean 'rewards/margins'"):
        result.plot("rewards/margin")


@pytest.mark.parametrize(
    ("widgets", "kernel", "live"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_a_notebook_with_widgets_has_a_live_bar(
    widgets: bool, kernel: bool, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "find_spec", lambda name: object() if widgets else None)
    monkeypatch.setattr(progress.sys, "modules", {"ipykernel": None} if kernel else {})
    assert isinstance(progress.run_progress("auto", "dpo"), progress.RichProgress) is live


def test_a_comparison_shows_itself(
    model_folder: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "model.path": str(model_folder), "data.path": str(pairs_file), "data.eval_records": 16, "batch.records": 8,
        "trainer.max_steps": 2, "evaluation.max_new_tokens": 4, "evaluation.kl_prompts": 6, "budget.trials": 1,
        "seeds": 2, "methods.mild.loss": "dpo", "methods.mild.loss.beta": 0.5,
    }  # fmt: skip
    found = prefopt.compare(["dpo"], options, output_dir=tmp_path / "an out", display="quiet", workers=0)
    assert capsys.readouterr().out == ""
    assert shlex.split(found.outcome.command)[-1] == f"output_dir='{tmp_path / 'an out'}'"  # a shell keeps its quotes
    assert set(found.table().index) == {"base", "sft", "dpo", "mild"}
    assert len(found.verdicts()) == 6
    assert repr(found).splitlines()[-1] == f"report: {tmp_path / 'an out' / 'report.html'}"
    assert "<table" in found._repr_html_()
    assert found.plot()._repr_svg_().startswith("<svg")
    assert (tmp_path / "an out" / "paper" / "results.csv").is_file()
    with pytest.raises(UserError, match="there is no plot 'final'"):
        found.plot("final")
    with pytest.raises(UserError, match=r"options: workers is an argument of prefopt\.compare"):
        prefopt.compare(["dpo"], {"workers": 2})


@pytest.mark.slow  # the world's model and a comparison on it
def test_the_notebook_runs(tmp_path: Path) -> None:
    """In a kernel of its own; each cell shows what the committed notebook shows of it: tables, plots, texts."""
    nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="pip install nbclient ipykernel")
    committed = nbformat.read(NOTEBOOK, as_version=4)
    run = copy.deepcopy(committed)
    nbclient.NotebookClient(run, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell, again in zip(committed.cells, run.cells, strict=True):
        if cell.cell_type == "code":
            assert shown(again) == shown(cell), f"run it: jupyter execute --inplace examples/{NOTEBOOK.name}"


def shown(cell: Any) -> set[str]:
    """The media types of a cell's results; what it prints depends on what is in the cache."""
    assert not any(output.output_type == "error" for output in cell.outputs)
    return {kind for output in cell.outputs for kind in output.get("data", ())}
