"""Tasks of lm-evaluation-harness: every file of a task counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from prefopt.errors import UserError
from prefopt.evaluate.tasks import digest_of_tasks, run_tasks


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


def test_a_harness_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'prefopt-zoo\[lm-eval\]'"):
        run_tasks(None, None, ["even"])
