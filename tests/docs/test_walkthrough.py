"""The commands of docs/walkthrough.md run in their order, on a tiny model instead of the real one."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from prefopt.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "walkthrough.md"
DATA = "instruction-data-with-preference.json"
# Makes the runs small; everything else is as on the page.
SMALL = ["model=local", "model.path=model", "trainer.max_steps=2", "data.eval_records=8", "evaluation.max_new_tokens=4",
         "evaluation.kl_prompts=2"]  # fmt: skip


def commands() -> list[list[str]]:
    found = re.findall(r"^```text\n(prefopt .*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for block in found for line in block.splitlines()]


def test_the_walkthrough_leads_from_data_to_an_exported_model(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model_folder)
    rows = [{"instruction": f"Is {i} even?", "input": "", "output": "", "chosen": f"Kindly: {i % 2 == 0}.",
             "rejected": f"Duh, {i}."} for i in range(40)]  # fmt: skip
    Path(DATA).write_text(json.dumps(rows))
    walk = commands()
    assert [words[1] for words in walk] == ["data", "plan", "train", "eval", "sample", "export"]
    for words in walk:
        small = SMALL if words[1] in ("plan", "train") else ["--max-new-tokens", "4"] if words[1] == "sample" else []
        assert main([*words[1:], *small]) in (0, 3), words  # 3: the data doctor's warnings on so few rows
    assert (tmp_path / "polite" / "model.safetensors").exists()
    assert (tmp_path / "runs" / "polite" / "final" / "adapter_model.safetensors").exists()
