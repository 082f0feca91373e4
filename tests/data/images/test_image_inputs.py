"""Images as tokens: what stands in a prompt is what the processor writes, and tells contents apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prefopt.data.data_config import DataConfig
from prefopt.data.doctor import examine
from prefopt.data.images.inputs import decode_prompt, has_images, inputs_of
from prefopt.data.prepare import Prepared, prepare
from prefopt.data.reader import read
from prefopt.data.tokenize import Encoder
from prefopt.models.load import load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.plugin import Data
from tests.data import tiny
from tests.models import pictures


@pytest.fixture(scope="module", params=list(pictures.FAMILIES))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(ModelConfig(path=pictures.save(request.param, tmp_path_factory.mktemp(request.param))))


def prepared(tokenizer: Any, file: Path, kind: Data = Data.PAIRS, **options: Any) -> Prepared:
    return prepare(DataConfig(path=str(file), **options), tokenizer, kind)


def test_a_prompt_has_the_ids_of_the_processor(tokenizer: Any, tmp_path: Path) -> None:
    inputs = inputs_of(tokenizer)
    assert inputs is not None
    records = prepared(tokenizer, pictures.write(tmp_path, 6)).train
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour?"}]}]
    text = inputs.processor.apply_chat_template(turns, add_generation_prompt=True)
    for i in range(6):
        image = Image.open(tmp_path / f"{i}.png").convert("RGB")
        theirs = inputs.processor(images=image, text=text)["input_ids"][0]
        ours = inputs.ids(records[i].prompt).tolist()  # without a last token that merges with the answer
        assert ours == list(theirs)[: len(ours)]
        assert len(ours) >= len(theirs) - 1
        assert all(not has_images(c) for c in records[i].completions)
    assert len({records[i].prompt.tobytes() for i in range(6)}) == 6
    assert "What colour?" in decode_prompt(tokenizer, records[0].prompt.tolist())


def test_the_same_image_in_another_file_has_the_same_tokens(tokenizer: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pictures.write(tmp_path / name, 2)
    (tmp_path / "two" / "0.png").rename(tmp_path / "two" / "other name.png")
    rows = [json.loads(line) for line in (tmp_path / "two" / "pairs.jsonl").read_text().splitlines()]
    rows[0]["images"] = [str(tmp_path / "two" / "other name.png")]
    (tmp_path / "two" / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    one, two = (prepared(tokenizer, tmp_path / name / "pairs.jsonl").train for name in ("one", "two"))
    assert np.array_equal(one[0].prompt, two[0].prompt)
    assert not np.array_equal(one[0].prompt, one[1].prompt)


def test_tokens_are_made_anew_when_an_image_changes(tokenizer: Any, tmp_path: Path) -> None:
    file = pictures.write(tmp_path, 2)
    before = prepared(tokenizer, file).train[0].prompt
    shutil.copy(tmp_path / "1.png", tmp_path / "0.png")
    assert not np.array_equal(before, prepared(tokenizer, file).train[0].prompt)


def test_several_processes_give_the_same_tokens(tokenizer: Any, tmp_path: Path) -> None:
    file = pictures.write(tmp_path, 4)
    for i in range(4):  # images that no other test has read: each process begins with what this one knows
        Image.new("RGB", (16, 16), (1, 2, i)).save(tmp_path / f"{i}.png")
    several = prepared(tokenizer, file, num_proc=2, cache_dir=str(tmp_path / "several"))
    assert not several.rejections
    one = prepared(tokenizer, file, num_proc=1, cache_dir=str(tmp_path / "one"))
    for ours, theirs in zip(several.train, one.train, strict=True):
        assert np.array_equal(ours.prompt, theirs.prompt)
        assert len(inputs_of(tokenizer).images_of(ours.prompt)) == 1  # type: ignore[union-attr]


def test_rows_without_images_store_none(tokenizer: Any, tmp_path: Path) -> None:
    file = pictures.write(tmp_path, 1)
    (row,) = map(json.loads, file.read_text().splitlines())
    file.write_text("\n".join(map(json.dumps, [row, {**row, "prompt": [{"role": "user", "content": "What?"}],
                                                     "images": None}])))  # fmt: skip
    config = DataConfig(path=str(file))
    with_image, without = Encoder(tokenizer, config).rows(read(config).records)
    assert len(with_image["images"]) == 1
    assert without["images"] is None


def test_other_shapes_and_spans_come_after_the_image(tokenizer: Any, tmp_path: Path) -> None:
    pictures.write(tmp_path, 1)
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "r"},
             {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "r indeed"}]  # fmt: skip
    file = tmp_path / "turns.jsonl"
    file.write_text("\n".join(json.dumps({"messages": turns, "images": ["0.png"]}) for _ in range(2)))
    record = prepared(tokenizer, file, Data.DEMONSTRATIONS, train_on="all_turns").train[0]
    (completion,) = record.completions
    trained = tokenizer.decode(completion[completion >= 0])
    assert [trained.count(said) for said in ("r indeed", "Sure?", "What?")] == [1, 0, 0]
    assert (completion < 0).any()


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        ([{"prompt": [{"role": "user", "content": "MARK MARK What?"}], "images": ["0.png"]}], {}, "image_"),
        ([{"prompt": [{"role": "user", "content": "MARK What?"}]}], {}, "image_marks"),
        ([{"chosen": "MARK"}], {}, "image_marks"),
        ([{"images": ["0.png"]}], {"max_length": 8}, "too_long"),
    ],
)
def test_what_has_no_tokens_is_rejected(
    tokenizer: Any, tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], reason: str
) -> None:
    good = [json.loads(line) for line in pictures.write(tmp_path, 1).read_text().splitlines()]
    base = {**good[0], "prompt": [{"role": "user", "content": "What?"}], "images": None}
    token = inputs_of(tokenizer).processor.tokenizer.decode([inputs_of(tokenizer).token_id])  # type: ignore[union-attr]
    file = tmp_path / "bad.jsonl"
    rows = [{**base, **row} for row in rows]
    file.write_text("\n".join(json.dumps(row).replace("MARK", token) for row in [*rows, {**base, "chosen": "x"}]))
    if options:
        options["max_length"] = len(prepared(tokenizer, file, max_length=200).train[1].prompt) + 4
    found = prepared(tokenizer, file, **options)
    assert [r.reason[: len(reason)] for r in found.rejections] == [reason]


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content + '' }}{% endfor %}"])
def test_a_model_for_texts_alone_names_the_remedy(tmp_path: Path, template: str | None) -> None:
    file = pictures.write(tmp_path, 2)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "prompt": "What?", "images": None}])))
    found = prepared(tiny.tokenizer(template), file)
    assert [r.reason for r in found.rejections] == ["images_unsupported"] * 2
    assert "data.ignore=[images]" in found.rejections[0].detail


def test_the_doctor_counts_images_and_finds_repeated_ones(tokenizer: Any, tmp_path: Path) -> None:
    file = pictures.write(tmp_path, 6)
    Image.open(tmp_path / "0.png").save(tmp_path / "3.bmp")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[3] |= {"prompt": [{"role": "user", "content": "And now?"}], "images": ["3.bmp"]}
    file.write_text("\n".join(map(json.dumps, rows)))
    report = examine(DataConfig(path=str(file)), tokenizer=tokenizer)
    found = report.findings
    assert found["with_images"].figure == 6
    assert "6 images, 5 different ones, of 16x16 to 32x16 pixels" in found["with_images"].note
    assert found["duplicated_images"].figure == 1
    assert found["near_duplicates"].figure == 0  # equal texts about other images are other prompts
    assert any(line.startswith("images: 6 in prompts, ") for line in report.account)


def test_several_pairs_on_one_prompt_repeat_no_image(tmp_path: Path) -> None:
    file = pictures.write(tmp_path, 1)
    row = json.loads(file.read_text())
    file.write_text("\n".join(json.dumps({**row, "rejected": text}) for text in ("green", "grey", "no colour")))
    found = examine(DataConfig(path=str(file))).findings
    assert found["with_images"].figure == 3
    assert found["duplicated_images"].figure == 0
