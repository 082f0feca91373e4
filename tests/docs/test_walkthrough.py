"""The commands of docs/walkthrough.md run in their order, on a tiny model; its output is generated."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from walkthrough import DATA, PAGE, RESULTS, commands, criterion, excerpt, filled, judged, words_of

from prefopt.cli import main

# Makes the runs small; everything else is as on the page.
SMALL = {"trainer.max_steps": "2", "data.eval_records": "8", "evaluation.max_new_tokens": "4", "evaluation.texts": "2",
         "evaluation.kl_prompts": "2", "model": "local", "model.path": "model"}  # fmt: skip


def smaller(words: list[str]) -> list[str]:
    """A command with the options of SMALL in place of its own."""
    kept = [word for word in words if word.partition("=")[0] not in SMALL]
    return [*kept, *(f"{name}={value}" for name, value in SMALL.items())]


@pytest.mark.slow
def test_the_walkthrough_leads_from_data_to_an_exported_model(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model_folder)
    rows = [{"instruction": f"Is {i} even?", "input": "", "output": "", "chosen": f"Kindly: {i % 2 == 0}.",
             "rejected": f"Duh, {i}."} for i in range(40)]  # fmt: skip
    Path(DATA).write_text(json.dumps(rows))
    walk = commands(PAGE.read_text())
    assert list(walk) == ["data", "train", "sample", "export"]
    for verb, words in walk.items():
        words = smaller(words) if verb == "train" else words
        words = [*words[:-1], "4"] if verb == "sample" else words
        assert main(words[1:]) in (0, 3), words  # 3: the data doctor's warnings on so few rows
    assert (tmp_path / "polite" / "model.safetensors").exists()
    assert (tmp_path / "runs" / "polite" / "final" / "adapter_model.safetensors").exists()


def test_the_page_shows_what_its_commands_said() -> None:
    page, results = PAGE.read_text(), json.loads(RESULTS.read_text())
    assert filled(page, results) == page
    assert {verb: shlex.join(words) for verb, words in commands(page).items()} == {
        verb: result["command"] for verb, result in results["outputs"].items()
    }


def test_the_texts_moved_to_the_words_of_the_chosen_side() -> None:
    found = json.loads(RESULTS.read_text())["judged"]
    assert found["chosen_after"] > found["texts"] / 2 > found["chosen_before"]
    said = " ".join(s[when] for s in found["samples"] for when in ("before", "after"))
    assert all(words and set(words) <= words_of(said) for words in found["words"].values())
    for kind, when in ((kind, when) for kind in ("chosen", "rejected") for when in ("before", "after")):
        marked = [s for s in found["samples"] if words_of(s[when]) & set(found["words"][kind])]
        assert found[f"{kind}_{when}"] == len(marked)


def test_the_criterion_is_read_from_the_pairs() -> None:
    rows = [{"chosen": f"Kindly note {i}", "rejected": f"Duh note {i}"} for i in range(12)]
    marks = criterion(rows)
    assert marks == {"chosen": {"kindly"}, "rejected": {"duh"}}
    sample = {"prompt": "<|im_start|>user\nq<|im_end|>", "before": "duh", "after": "Kindly, yes"}
    counts = judged([sample], marks)
    assert (counts["chosen_after"], counts["chosen_before"], counts["rejected_before"]) == (1, 0, 1)
    assert counts["words"] == {"chosen": ["kindly"], "rejected": ["duh"]}


def test_left_out_lines_are_an_ellipsis() -> None:
    assert excerpt("a 1\nb\nc\na 2\nd\n", "^a") == "a 1\n…\na 2"
