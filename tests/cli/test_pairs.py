"""`prefopt sample num_generations=K` and `prefopt pairs`: samples with their origin, and data files made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.cli import main
from prefopt.data import DataConfig, prepare, read
from prefopt.errors import UserError
from prefopt.models.load import load_model, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.plugin import Data
from prefopt.runs.sample_files import read_groups

Capture = pytest.CaptureFixture[str]
REWARD = "def short(prompts, completions):\n    return [-float(len(text) // 4) for text in completions]\n"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four samples of each of ten prompts, half of which have turns and tools, in a file."""
    folder = tmp_path_factory.mktemp("drawn")
    rows: list[dict[str, Any]] = [{"prompt": f"Is {i} even?"} for i in range(5)]
    rows += [{"messages": [{"role": "user", "content": f"Is {i} odd?"}]} for i in range(5)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARD)
    return folder


def given(folder: Path, model: Path) -> list[str]:
    return [
        "sample",
        str(model),
        f"data.path={folder / 'prompts.jsonl'}",
        "num_generations=4",
        "--max-new-tokens",
        "60",
    ]


def sampled(folder: Path, model: Path, *more: str) -> list[dict[str, Any]]:
    assert main([*given(folder, model), *more, "--to", str(folder / "samples.json")]) == 0
    rows: list[dict[str, Any]] = json.loads((folder / "samples.json").read_text())
    return rows


def test_samples_have_what_a_reward_and_a_ratio_need(drawn: Path, model_folder: Path, capsys: Capture) -> None:
    rows = sampled(drawn, model_folder)
    assert [len(row["texts"]) for row in rows] == [4] * 10
    assert rows[0]["given"] == "Is 0 even?"
    assert rows[5]["given"] == [{"role": "user", "content": "Is 0 odd?"}]
    assert rows[0]["sampling"] == {"max_new_tokens": 60, "temperature": 1.0, "seed": 0}
    model, tokenizer = (load(ModelConfig(path=str(model_folder))) for load in (load_model, load_tokenizer))
    for row in rows[:2]:
        for text in row["texts"]:
            assert text["ended"] == (text["tokens"][-1] == tokenizer.eos_token_id)
            assert text["raw"] == tokenizer.decode(text["tokens"])
            assert "</s>" not in text["text"]
            logits = model(_ids(row["prompt_tokens"] + text["tokens"])).logits[0].double().log_softmax(-1)
            own = logits[len(row["prompt_tokens"]) - 1 : -1].detach().numpy()
            expected = own[np.arange(len(text["tokens"])), text["tokens"]]
            np.testing.assert_allclose(text["logps"], expected, atol=1e-5)
    capsys.readouterr()
    assert main([*given(drawn, model_folder), "--count", "3", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    tokens = [[[text["tokens"] for text in row["texts"]] for row in some] for some in (rows[:3], again)]
    assert tokens[0] == tokens[1], "draws depend on the prompt alone"


def _ids(tokens: list[int]) -> Any:
    import torch

    return torch.tensor([tokens])


def test_pairs_are_data_with_their_origin(drawn: Path, model_folder: Path, capsys: Capture) -> None:
    sampled(drawn, model_folder)
    words = [str(drawn / "samples.json"), f"reward={drawn / 'rewards.py'}:short"]
    capsys.readouterr()
    assert main(["pairs", *words, "label=argmax", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in Path(figures["file"]).read_text().splitlines()]
    assert Path(figures["file"]) == drawn / "samples_pairs.jsonl"
    assert figures["rows"] == len(rows)
    assert len(rows) + sum(figures["left_out"].values()) == 20
    assert all(row["chosen_score"] >= row["rejected_score"] for row in rows)
    origin = rows[0]["provenance"]
    assert origin["models"] == [str(model_folder)] * 2
    assert (origin["label"], origin["seed"], origin["temperature"]) == ("argmax", 0, 1.0)
    assert origin["reward"].endswith("rewards.py:short")
    config = DataConfig(path=figures["file"], ties="keep")
    found = read(config)
    assert len(found.records) == len(rows)
    assert not any(name.startswith("unread/") for name in found.counts), "the origin is no column to be warned of"
    tokenizer = load_tokenizer(ModelConfig(path=str(model_folder)))
    assert len(prepare(config, tokenizer, Data.PAIRS).train) == len(rows)


@pytest.mark.parametrize("shape", ["pairs", "lists", "demonstrations"])
def test_texts_that_were_cut_off_are_open(drawn: Path, model_folder: Path, capsys: Capture, shape: str) -> None:
    samples = {s["id"]: s["texts"] for s in sampled(drawn, model_folder)}
    target = drawn / f"cut_{shape}.jsonl"
    words = ["pairs", str(drawn / "samples.json"), f"reward={drawn / 'rewards.py'}:short", "--to", str(target),
             "--shape", shape, "label=soft"]  # fmt: skip
    made = {}
    capsys.readouterr()
    for cut_off in ("keep", "drop"):
        assert main([*words, f"cut_off={cut_off}", "--json"]) == 0
        made[cut_off] = json.loads(capsys.readouterr().out)
        rows = [json.loads(line) for line in target.read_text().splitlines()]
        completions = [row.get("completions") or [row[k] for k in ("chosen", "rejected", "completion") if k in row]
                       for row in rows]  # fmt: skip
        for row, texts in zip(rows, completions, strict=True):
            said = {(t["text"], t["ended"]) for t in samples[row["provenance"]["record"]]}
            assert set(zip(texts, row.get("ended", [True] * len(texts)), strict=True)) <= said
    assert made["keep"]["open"] > made["drop"]["open"] == 0
    assert main(words) == 0
    assert f"{made['keep']['open']} completions were cut off: they are open" in capsys.readouterr().out
    tokenizer = load_tokenizer(ModelConfig(path=str(model_folder)))
    tokens = prepare(DataConfig(path=str(target), ties="keep"), tokenizer, None).train
    last = [c[-1] for i in range(len(tokens)) for c in tokens[i].completions]
    assert sum(token != tokenizer.eos_token_id for token in last) == made["keep"]["open"]


def test_the_other_shapes(drawn: Path, model_folder: Path, capsys: Capture) -> None:
    samples = sampled(drawn, model_folder)
    words = ["pairs", str(drawn / "samples.json"), f"reward={drawn / 'rewards.py'}:short", "--json"]
    for shape, kind in (("lists", Data.LISTS), ("demonstrations", Data.DEMONSTRATIONS)):
        target = drawn / "made" / f"{shape}.jsonl"
        assert main([*words, "--shape", shape, "--to", str(target)]) == 0
        capsys.readouterr()
        assert {record.kind for record in read(DataConfig(path=str(target))).records} == {kind}
    best = [json.loads(line) for line in target.read_text().splitlines()]
    for row in best:
        group = next(s for s in samples if s["id"] == row["provenance"]["record"])
        ended = {t["text"]: t["ended"] for t in group["texts"]}
        assert row.get("ended", [True]) == [ended[row["completion"]]]
        assert row["provenance"]["best_of"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{prompts}", "reward=math:sqrt"], "does not have samples"),
        (["{samples}"], "which reward?"),
        (["{samples}", "reward=math:sqrt", "label=best"], "label=best is not one of bt, soft, argmax"),
        (["{samples}", "reward=math:sqrt", "lr=1"], "is not a setting of `prefopt pairs`"),
        (["{samples}", "reward=math:sqrt", "label_temperature=0"], "label_temperature=0 must be a number"),
        (
            ["nowhere.json", "reward=math:sqrt"],
            "nowhere.json cannot be read (No such file or directory); make it with `prefopt sample MODEL",
        ),
        (["{samples}", "reward=math:sqrt", "cut_off=no"], "cut_off=no is not keep or drop"),
    ],
)
def test_what_cannot_be_used_is_named(
    words: list[str], message: str, drawn: Path, capsys: Capture, model_folder: Path
) -> None:
    if not (drawn / "samples.json").exists():
        sampled(drawn, model_folder, "--count", "1")
    places = {"{prompts}": str(drawn / "prompts.jsonl"), "{samples}": str(drawn / "samples.json")}
    assert main(["pairs", *(places.get(word, word) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_samples_that_was_cut_short(drawn: Path, model_folder: Path, tmp_path: Path) -> None:
    """The line is named; characters that only some readers take for the end of a line end none."""
    if not (drawn / "samples.json").exists():
        sampled(drawn, model_folder, "--count", "1")
    row = json.loads((drawn / "samples.json").read_text())[0]
    row["texts"][0]["text"] = "a\u2028b"
    line, file = json.dumps(row, ensure_ascii=False), tmp_path / "samples.jsonl"
    file.write_text(f"{line}\n\n{line}\n", encoding="utf-8")
    assert len(read_groups(file)) == 2
    file.write_text(f"{line}\n{line[:-9]}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"samples\.jsonl, line 2: .*; was the file cut short"):
        read_groups(file)


def test_the_same_text_every_time_is_refused(drawn: Path, model_folder: Path, capsys: Capture) -> None:
    words = [str(model_folder), "--prompt", "x", "num_generations=2", "--temperature", "0"]
    assert main(["sample", *words]) == 2
    assert "at temperature 0 all samples of a prompt are the same text" in capsys.readouterr().err
