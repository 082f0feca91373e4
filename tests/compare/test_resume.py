"""A comparison that is killed goes on; jobs run by a launcher; tasks of lm-evaluation-harness."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from prefopt.cli import main
from prefopt.compare import execute, workers
from prefopt.compare.jobs import Job, JobResult
from prefopt.errors import UserError

Hold = Callable[..., dict[str, Any]]
# `prefopt compare`, killed as soon as two results are saved.
KILLED = """
import os, signal, sys
from prefopt.cli import main
from prefopt.compare import workers

save, saved = workers.save, []

def save_two(folder, result):
    save(folder, result)
    saved.append(result)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

workers.save = save_two
sys.exit(main(sys.argv[1:]))
"""


def figures(content: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how the jobs were run."""
    rows = {
        row["name"]: {name: row[name] for name in ("point", "interval", "chosen", "figures", "by_seed")}
        for row in content["methods"]
    }
    return {"rows": rows, "verdicts": content["verdicts"], "metric": content["metric"]}


def test_killed_in_the_middle_and_started_again(hold: Hold, words: list[str], tmp_path: Path) -> None:
    """Killed with -9 after two jobs, on worker processes; then finished here: bit for bit what one go gives."""
    whole = hold("losses=[dpo]", "budget.trials=3", folder=tmp_path / "whole")
    folder = tmp_path / "killed"
    given = [word for word in words if not word.startswith(("workers=", "budget."))]
    given += ["losses=[dpo]", "budget.trials=3", "workers=2", f"output_dir={folder}"]
    command = [sys.executable, "-c", KILLED, "compare", *given]
    killed = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(folder.glob("jobs/*/result.json"))) == 2
    assert not (folder / "results.json").exists()
    assert figures(hold("losses=[dpo]", "budget.trials=3", folder=folder)) == figures(whole)


@pytest.mark.filterwarnings("ignore")  # the launchers' own
@pytest.mark.parametrize(
    ("package", "launcher"),
    [
        ("hydra", ["launcher=basic"]),
        ("hydra_plugins.hydra_joblib_launcher", ["launcher=joblib", "hydra.launcher.n_jobs=2"]),
        ("hydra_plugins.hydra_submitit_launcher", ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=30"]),
        ("hydra_plugins.hydra_ray_launcher", ["launcher=ray"]),
    ],
)
def test_jobs_by_a_hydra_launcher(
    hold: Hold, package: str, launcher: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra's own runs them one after another, the others in processes; what they give is what the workers give."""
    pytest.importorskip(package)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here: the last digits depend on the number of threads
    given = ["losses=[dpo]", "seeds=1", "budget.trials=2"]
    expected = hold(*given, folder=Path("plain"))
    assert figures(hold(*given, *launcher, folder=Path("launched"))) == figures(expected)


def test_a_launcher_has_its_options_alone(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["compare", *words, "losses=[dpo]", f"output_dir={tmp_path}"]
    assert main([*given, "hydra.launcher.n_jobs=2"]) == 2
    assert "say which launcher" in capsys.readouterr().err
    assert main([*given, "launcher=basic", "hydra.launcher.jobs=2"]) == 2
    assert "hydra.launcher.jobs" in capsys.readouterr().err
    assert main([*given, "launcher=slumr"]) == 2
    assert "unknown hydra/launcher 'slumr'" in capsys.readouterr().err


def test_a_worker_keeps_nothing_of_the_jobs_it_did(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models, trainers and their tensors go with each job; the data and the reference are kept once."""
    counts: list[tuple[int, int]] = []
    run = workers.execute

    def counted(job: Job) -> JobResult:
        result = run(job)
        gc.collect()
        kinds = [type(one) for one in gc.get_objects()]
        counts.append((sum(issubclass(k, torch.Tensor) for k in kinds), sum(issubclass(k, Trainer) for k in kinds)))
        return result

    monkeypatch.setattr(workers, "execute", counted)
    hold("losses=[dpo,kto]", "seeds=2", "budget.trials=2")
    assert len(counts) == 14
    tensors, trainers = zip(*counts, strict=True)
    assert max(tensors[7:]) < max(tensors[:7]) + 12  # one model has more than twelve
    assert max(trainers) <= 1


@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_tasks_of_the_harness(hold: Hold, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = [{"question": f"Is {i} even?", "answer": i % 2} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tmp_path / "even.yaml"
    task.write_text(
        f"task: even\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'rows.jsonl'}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: [' yes', ' no']\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n"
    )
    found = hold("losses=[dpo]", "seeds=1", f"tasks=['{task}']")
    for row in found["methods"]:
        assert 0 <= row["figures"]["task/even/acc"] <= 1


def test_a_harness_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefopt.evaluate.tasks import run_tasks

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'prefopt-zoo\[lm-eval\]'"):
        run_tasks(None, None, ["even"])


def test_worlds_have_no_judge() -> None:
    """The reward of a world is exact: a judge beside it is refused, job by job."""

    from prefopt.compare.jobs import Job
    from prefopt.compare.spec import MeasureConfig
    from prefopt.config.compose import compose

    job = Job(
        method="base", label="base", config=compose(["loss=dpo", "output_dir=."]), fingerprints={}, split="test",
        measure=MeasureConfig(judge="m:f"), trained=False,
    )  # fmt: skip
    with pytest.raises(UserError, match="for real data"):
        execute._measure_in_world(job, None)
