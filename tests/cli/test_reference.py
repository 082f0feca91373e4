"""`prefopt reference build|list|verify|prune`, as a user runs it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt.cli import main
from tests.engine import tiny

ROWS = [
    {
        "prompt": f"w{i} w{i + 1}",
        "chosen": " ".join(f"w{(3 * i + k) % 90}" for k in range(4)),
        "rejected": f"w{i + 7} w3",
    }
    for i in range(6)
]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name a tiny model and six pairs in a file."""
    folder = tmp_path_factory.mktemp("given")
    tiny.model("llama").save_pretrained(folder / "model")
    words = {f"w{i}": i + 3 for i in range(94)} | {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return [
        f"model.path={folder / 'model'}",
        "data=auto",
        f"data.path={folder / 'pairs.jsonl'}",
        "data.eval_records=0",
        "trainer.use_cpu=true",
    ]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path))
    return tmp_path / "reference"


def listed(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    capsys.readouterr()
    assert main(["reference", "list", "--json"]) == 0
    found: list[dict] = json.loads(capsys.readouterr().out)
    return found


def test_build_list_verify_prune(given: list[str], cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference", "build", *given]) == 0
    assert "12 completions: 0 found, 12 computed" in capsys.readouterr().out
    # another method, another setting, another file name: all there
    assert main(["reference", "build", *given, "loss=ipo", "seed=5", "batch.records=2"]) == 0
    assert "12 completions: 12 found, 0 computed" in capsys.readouterr().out
    (store,) = listed(capsys)
    assert store["entries"] == 12
    assert store["broken_parts"] == store["altered_parts"] == 0
    assert main(["reference", "list"]) == 0
    assert store["name"][:12] in capsys.readouterr().out
    assert main(["reference", "verify", "--all"]) == 0
    assert main(["reference", "verify", store["name"][:8]]) == 0
    assert "12 completions, intact" in capsys.readouterr().out
    assert main(["reference", "prune", store["name"]]) == 0
    assert "freed in all" in capsys.readouterr().out
    assert listed(capsys) == []
    assert list(cache.iterdir()) == []


def test_verify_tells_of_altered_parts_and_of_cut_ones(
    given: list[str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reference", "build", *given]) == 0
    (part,) = cache.glob("*/part-*")
    tokens = np.load(part / "token.npy")
    np.save(part / "token.npy", tokens + 1)
    assert main(["reference", "verify", "--all"]) == 3
    assert part.name in capsys.readouterr().err
    assert main(["reference", "build", *given]) == 2
    assert "is not what was written there" in capsys.readouterr().err
    (part / "keys.npy").write_bytes(b"")
    assert main(["reference", "verify", "--all"]) == 0
    assert "1 incomplete parts" in capsys.readouterr().out
    assert main(["reference", "prune"]) == 0
    assert "1 leftovers" in capsys.readouterr().out
    assert not part.exists()


def test_prune_chooses(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, days in (("a" * 32, 10.0), ("b" * 32, 1.0), ("ab" * 16, 3.0)):
        (cache / name / "tmp-dead").mkdir(parents=True)
        for folder in (cache / name / "tmp-dead", cache / name):
            os.utime(folder, (time.time() - days * 86400,) * 2)
    (cache / "notes").mkdir()
    assert main(["reference", "prune", "a"]) == 2  # two begin so
    assert main(["reference", "prune", "../notes"]) == 2
    assert main(["reference", "prune", "notes"]) == 2
    assert main(["reference", "prune", "aa", "--all"]) == 2
    assert len(listed(capsys)) == 3
    assert main(["reference", "prune", "--older-than", "5"]) == 0
    assert [s["name"] for s in listed(capsys)] == ["ab" * 16, "b" * 32]
    assert not list(cache.glob("*/tmp-dead"))
    assert main(["reference", "prune", "--all"]) == 0
    assert [p.name for p in cache.iterdir()] == ["notes"]


def test_log_probs_for_figures_alone_are_listed_and_pruned(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One reference, scored for a loss that reads it and for the figures of one that does not."""
    figures = cache.with_name("reference_figures")
    for root in (cache, figures):
        (root / ("a" * 32)).mkdir(parents=True)
    (figures / ("b" * 32) / "part-cut").mkdir(parents=True)
    assert [store["folder"] for store in listed(capsys)] == [str(cache), str(figures), str(figures)]
    assert main(["reference", "list"]) == 0
    said = "".join(capsys.readouterr().out.split())
    assert "reference_figures" in said
    assert main(["reference", "prune"]) == 0
    assert "1 leftovers" in capsys.readouterr().out
    assert main(["reference", "prune", "aa"]) == 0
    assert [store["name"] for store in listed(capsys)] == ["b" * 32]
    assert main(["reference", "prune", "--all"]) == 0
    assert listed(capsys) == []


def test_what_cannot_be(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference", "verify"]) == 2
    assert main(["reference", "verify", "ffff"]) == 2
    assert main(["reference", "build", *given, "los=dpo"]) == 2
    assert main(["reference", "prune"]) == 0
    assert "0.0 KiB freed in all" in capsys.readouterr().out
