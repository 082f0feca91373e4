"""`prefopt train -m sweep=optuna`: one method's settings searched by Optuna, for a figure of the held-out records."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.cli.conftest import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's own


@pytest.fixture(autouse=True)
def _plugin() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")


def searched(run: Run, *given: str) -> list[str]:
    words = [word for word in run.given if not word.startswith(("output_dir", "trainer.learning_rate"))]
    return [
        "train", "-m", *words, "sweep=optuna", "hydra.sweeper.n_trials=3", f"hydra.sweep.dir={run.out}",
        "loss.beta=tag(log, interval(0.01, 1))", "trainer.max_steps=1", *given,
    ]  # fmt: skip


def test_the_best_of_the_trials_is_kept(run: Run) -> None:
    from prefopt.cli import main

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
    from prefopt.cli import main

    assert main([*searched(run), given, "hydra.sweeper.n_trials=1"]) == 2
    assert said in capsys.readouterr().err
