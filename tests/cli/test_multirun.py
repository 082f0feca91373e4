"""`prefopt train -m`: one run per combination, and settings searched by Optuna."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefopt.cli import main
from tests.cli.conftest import Run


def test_multirun_gives_each_method_its_folder(run: Run) -> None:
    given = [g for g in run.given if not g.startswith("output_dir")]
    assert main(["train", "-m", *given, "loss=dpo,simpo", f"hydra.sweep.dir={run.out}"]) == 0
    assert sorted(p.name for p in run.out.iterdir() if p.is_dir()) == ["0-dpo", "1-simpo"]
    assert all((run.out / d / "summary.json").exists() for d in ("0-dpo", "1-simpo"))


def test_a_multirun_tells_each(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [g for g in run.given if not g.startswith(("output_dir", "trainer.max_steps"))]
    runs = ["loss=sft,simpo", f"hydra.sweep.dir={tmp_path}/sweep", "trainer.max_steps=1"]
    assert main(["train", "-m", *given, *runs]) == 0
    out = capsys.readouterr().out
    for name in ("0-sft", "1-simpo"):
        assert f"{tmp_path}/sweep/{name}/report.html" in out
        assert (tmp_path / "sweep" / name / "report.html").is_file()
    assert f"page: {tmp_path}/sweep/runs.html" in out
    assert 'href="1-simpo/report.html"' in (tmp_path / "sweep" / "runs.html").read_text()


def with_optuna(test: Any) -> Any:
    """Skip a test without Optuna's plugin, and ignore its warnings."""
    return pytest.mark.usefixtures("optuna")(pytest.mark.filterwarnings("ignore")(test))


@pytest.fixture
def optuna() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")


def searched(run: Run, *given: str) -> list[str]:
    words = [word for word in run.given if not word.startswith(("output_dir", "trainer.learning_rate"))]
    return [
        "train", "-m", *words, "sweep=optuna", "hydra.sweeper.n_trials=3", f"hydra.sweep.dir={run.out}",
        "loss.beta=tag(log, interval(0.01, 1))", "trainer.max_steps=1", *given,
    ]  # fmt: skip


@with_optuna
@pytest.mark.slow
def test_the_best_of_the_trials_is_kept(run: Run) -> None:
    assert main(searched(run, "optimized_metric=rewards/margins")) == 0
    kept = yaml.safe_load((run.out / "optimization_results.yaml").read_text())
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in sorted(run.out.glob("*-dpo"))]
    assert len(summaries) == 3
    assert kept["best_value"] == max(summary["after"]["rewards/margins"] for summary in summaries)
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in sorted(run.out.glob("*-dpo"))]
    tried = [(config["loss"]["beta"], config["trainer"]["learning_rate"]) for config in configs]
    assert all(0.01 <= beta <= 1 and 1e-7 <= rate <= 1e-4 for beta, rate in tried)
    assert len(set(tried)) == 3
    assert (kept["best_params"]["loss.beta"], kept["best_params"]["trainer.learning_rate"]) in tried


@with_optuna
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("optimized_metric=rewards/margin", "did you mean 'rewards/margins'"),
        ("data.eval_records=0", "rewards/accuracies is measured on held-out records"),
    ],
)
def test_a_figure_that_is_not_there_is_refused(
    run: Run, given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*searched(run), given, "hydra.sweeper.n_trials=1"]) == 2
    assert said in capsys.readouterr().err


def test_a_hyper_parameter_is_refused_before_transformers_is_loaded(tmp_path: Path) -> None:
    code = ("import sys; from prefopt.cli import main; main(['train', 'loss.beta=-1'])\n"
            "print('transformers' in sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "loss=dpo: beta=-1.0 is not possible" in done.stderr
    assert done.stdout.splitlines()[-1] == "False"
