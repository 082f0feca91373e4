"""The command line of `prefopt compare`: what it refuses, jobs one by one, dry runs, launchers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli import main
from prefopt.compare.jobs import Job
from tests.compare.test_comparison import figures

Hold = Callable[..., dict[str, Any]]
MadeUp = Callable[..., list[Job]]


def test_a_dry_run_trains_a_few_steps_at_most(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["compare", *words, "losses=[dpo,ipo]", f"output_dir={tmp_path}", "--dry-run"]
    assert main([*given, "budget.trials=3"]) == 0
    said = capsys.readouterr().out
    assert "dpo beta=0.1, lr=0.01, seed 0, validation" in said
    assert "dpo, 2 more near its best, validation" in said
    assert "different test prompts: too few for a verdict, which takes at least 50" in said
    assert "10 + 7 jobs, 0 of them done; 17 to do at about" in said
    assert main(given) == 0  # one setting each: nothing to try
    said = capsys.readouterr().out
    assert "validation" not in said
    assert "0 + 7 jobs, 0 of them done; 7 to do at about" in said
    assert not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_jobs_can_be_run_one_by_one(
    hold: Hold, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], made_up: MadeUp
) -> None:
    """What a cluster does: list, run each, list again for each round; then nothing is left to run."""
    ran = made_up()
    given = ["compare", *words, "losses=[dpo]", "budget.trials=2", "seeds=1", f"output_dir={tmp_path / 'out'}"]
    for jobs in (3, 5, 8):
        capsys.readouterr()
        assert main([*given, "--list"]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
        assert len(lines) == jobs
        for line in lines:
            if "to do" in line:
                assert main([*given, f"only={line.split()[0]}"]) == 0
    assert len(ran) == 8
    assert len(hold("losses=[dpo]", "budget.trials=2", "seeds=1")["methods"]) == 3
    assert len(ran) == 8
    assert main([*given, "only=nothing"]) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["losses=[dqo]"], "unknown loss 'dqo'; did you mean 'dpo'?"),
        (["loses=[dpo]"], "no option 'loses'; did you mean 'losses'?"),
        (["losses=[dpo]", "budget.trial=3"], "no option 'budget.trial'; did you mean 'trials'?"),
        (["losses=[dpo]", "budget.trials=many"], "budget.trials is a whole number, not 'many'"),
        (["losses=[dpo]", "trainer.learning_rte=1"], "no option 'trainer.learning_rte'"),
        (["losses=dpo,ipo"], "give lists in brackets"),
        (["losses=[dpo]", "loss=ipo"], "a comparison sets this itself"),
        (["losses=[dpo,dpo]"], "two rows have the name 'dpo'"),
        (["seeds=2"], "nothing to compare"),
        (["losses=[dpo]", "methods.dpo=3"], "methods.NAME.OPTION=VALUE"),
        (["losses=[dpo]", "methods.dpo.loss.bta=3"], "no option 'loss.bta'"),
        (["losses=[dpo]", "seeds=0"], "seeds=0 must be at least 1"),
        (["losses=[dpo]", "--dry"], "no option --dry"),
        (["losses=[dpo]", "budget.trials=0"], "budget.trials=0 must be at least 1"),
        (["losses=[dpo]", "data.eval_records=0"], "needs held-out records"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    given: Sequence[str], said: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {word.split("=")[0] for word in given}
    kept = [word for word in words if word.split("=")[0] not in names]
    assert main(["compare", *kept, *given, f"output_dir={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("budget.trials", "seeds=N", "controls", "judge", "--dry-run", "only=KEY"))
    assert json.dumps(said)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Hydra's own
def test_jobs_by_hydra_itself(hold: Hold, made_up: MadeUp) -> None:
    """One after another in this process, trials first: they give what the workers give."""
    made_up()
    given = ["losses=[dpo]", "seeds=1", "budget.trials=2"]
    expected = hold(*given, folder=Path("plain"))
    assert figures(hold(*given, "launcher=basic", folder=Path("launched"))) == figures(expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the launchers' own
@pytest.mark.parametrize(
    ("package", "launcher"),
    [
        ("hydra_plugins.hydra_joblib_launcher", ["launcher=joblib", "hydra.launcher.n_jobs=2"]),
        ("hydra_plugins.hydra_submitit_launcher", ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=30"]),
        ("hydra_plugins.hydra_ray_launcher", ["launcher=ray"]),
    ],
)
def test_jobs_by_a_hydra_launcher(
    hold: Hold, finished: Path, package: str, launcher: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes of their own, they give what this process gives."""
    pytest.importorskip(package)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here: the last digits depend on the number of threads
    given = ["losses=[dpo]", "seeds=1"]
    expected = hold(*given, folder=Path("plain"), keep=finished)
    assert figures(hold(*given, *launcher, folder=Path("launched"))) == figures(expected)


def test_a_launcher_has_its_options_alone(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["compare", *words, "losses=[dpo]", f"output_dir={tmp_path}"]
    assert main([*given, "hydra.launcher.n_jobs=2"]) == 2
    assert "of which launcher? give launcher=NAME" in capsys.readouterr().err
    assert main([*given, "launcher=basic", "hydra.launcher.jobs=2"]) == 2
    assert "hydra.launcher.jobs" in capsys.readouterr().err
    assert main([*given, "launcher=slumr"]) == 2
    assert "unknown hydra/launcher 'slumr'" in capsys.readouterr().err
