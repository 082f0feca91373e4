"""Judges and tasks that change: what was measured by the old ones is not served again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.compare import workers
from prefopt.compare.jobs import Job
from prefopt.errors import UserError
from prefopt.evaluate.judge import function, rule, wins
from prefopt.evaluate.tasks import check_tasks, digest_of_tasks

Hold = Callable[..., dict[str, Any]]
LONGER = "def fn(prompts, first, second):\n    return [float(len(a) > len(b)) for a, b in zip(first, second)]\n"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that are run, and not taken from before."""
    seen: list[Job] = []
    run = workers.execute
    monkeypatch.setattr(workers, "execute", lambda job: (seen.append(job), run(job))[1])
    return seen


def points(content: dict[str, Any]) -> dict[str, float]:
    return {row["name"]: row["point"] for row in content["methods"]}


def test_another_reward_model_in_the_same_folder(
    hold: Hold, ran: list[Job], model_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    found = []
    for seed in (1, 2, 2):
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(model_folder, num_labels=1, pad_token_id=0)
        LlamaForSequenceClassification(config).save_pretrained(tmp_path / "judge")
        AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "judge")
        found.append(points(hold("losses=[dpo]", "seeds=1", f"judge={tmp_path / 'judge'}")))
    assert len(ran) == 2 * 3
    assert all(found[0][name] != found[1][name] for name in found[0])
    assert found[1] == found[2]


def test_an_edited_function_is_asked_again_and_nothing_is_trained_again(
    hold: Hold, ran: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found in the current folder."""
    given = ["losses=[dpo]", "seeds=1", "judge=a_judge_here:fn", "trainer.max_steps=6", "trainer.learning_rate=1e-1"]
    found = []
    for text in (LONGER, LONGER.replace("len(a) > len(b)", "len(a) <= len(b)")):
        (tmp_path / "a_judge_here.py").write_text(text)
        monkeypatch.delitem(sys.modules, "a_judge_here", raising=False)
        found.append(points(hold(*given)))
    assert len(ran) == 3
    assert str(tmp_path) not in sys.path
    assert found[0]["dpo"] == pytest.approx(1 - found[1]["dpo"])
    assert found[0]["dpo"] != found[1]["dpo"]
    monkeypatch.delitem(sys.modules, "a_judge_here")


def test_the_rule_is_the_file_that_the_function_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that names it may only hand on one from another file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge_inner.py").write_text(LONGER)
    (tmp_path / "judge_outer.py").write_text("from judge_inner import fn\n")
    first = rule("judge_outer:fn")
    (tmp_path / "judge_inner.py").write_text(LONGER + "# other\n")
    assert rule("judge_outer:fn") != first
    for name in ("judge_inner", "judge_outer"):
        monkeypatch.delitem(sys.modules, name)


def test_a_script_finds_a_judge_in_the_current_folder(tmp_path: Path) -> None:
    """The path of a script has the script's folder, not the current one."""
    (tmp_path / "near.py").write_text(LONGER)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "ask.py"
    script.write_text(
        "import sys\nfrom prefopt.evaluate.judge import function\nprint(function(sys.argv[1]).__name__)\n"
    )
    for judge, said in (("near:fn", "fn"), ("broken:fn", "judge=broken:fn: ZeroDivisionError: division by zero;")):
        done = subprocess.run([sys.executable, str(script), judge], cwd=tmp_path, capture_output=True, text=True)
        assert said in done.stdout + done.stderr


def test_a_judge_that_raises_is_named() -> None:
    def down(*asked: object) -> list[float]:
        raise ConnectionError("the service is down\ntry later")

    with pytest.raises(UserError, match=r"the judge .*down failed: ConnectionError: the service is down; it is called"):
        wins(down, ["p"], ["a"], ["b"])
    with pytest.raises(UserError, match="is not a function"):
        function("sys:path")


def task(folder: Path, answer: int) -> str:
    """A task on a data file, with a function beside it and a part that it includes."""
    rows = [{"question": f"Is {i} even?", "answer": answer} for i in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "part.yaml").write_text("output_type: multiple_choice\nmetric_list:\n  - metric: acc\n")
    (folder / "asked.py").write_text("def question(doc):\n    return doc['question']\n")
    file = folder / "even.yaml"
    file.write_text(
        f"task: even\ninclude: part.yaml\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {folder / 'rows.jsonl'}\ntest_split: test\ndoc_to_text: !function asked.question\n"
        "doc_to_choice: [' yes', ' no']\ndoc_to_target: answer\n"
    )
    return str(file)


@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_a_task_with_other_data_is_run_again(hold: Hold, ran: list[Job], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    found = []
    for answer in (0, 1, 1):
        rows = hold("losses=[dpo]", "seeds=1", f"tasks=['{task(tmp_path, answer)}']")["methods"]
        found.append({row["name"]: row["figures"]["task/even/acc"] for row in rows})
    assert [len(ran), found[1]] == [6, found[2]]
    assert all(found[0][name] == pytest.approx(1 - found[1][name]) for name in found[0])


def test_every_file_of_a_task_counts(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    tasks = (task(tmp_path, 0),)
    seen = {digest_of_tasks(tasks)}
    for count, name in enumerate(("even.yaml", "rows.jsonl", "part.yaml", "asked.py")):
        with (tmp_path / name).open("a") as file:
            file.write("\n")
        seen.add(digest_of_tasks(tasks))
        assert len(seen) == count + 2, name
    (tmp_path / "another.yaml").write_text("task: another\n")
    assert digest_of_tasks(tasks) in seen


@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_tasks_are_refused_before_any_job(
    words: list[str], ran: list[Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    from prefopt.cli import main

    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "none.yaml").write_text("output_type: multiple_choice\n")
    for name, said in (
        ("hellaswga", "no task 'hellaswga'; did you mean 'hellaswag'?"),
        (f"{tmp_path}/nowhere.yaml", "cannot read"),
        (f"{tmp_path}/list.yaml", "it has no `task: NAME`"),
        (f"{tmp_path}/none.yaml", "it has no `task: NAME`"),
    ):
        assert main(["compare", *words, "losses=[dpo]", f"tasks=['{name}']", f"output_dir={tmp_path / 'out'}"]) == 2
        assert said in capsys.readouterr().err
    assert ran == []
    check_tasks([task(tmp_path, 0)])
