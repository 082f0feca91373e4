"""Conversations, samples and files of samples about images."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.data.data_config import DataConfig
from prefopt.data.images.image_files import FILES
from prefopt.data.images.inputs import PROMPTS
from prefopt.data.tokenize import Encoder
from prefopt.engine.generation import generate
from prefopt.errors import UserError
from prefopt.evaluate.conversation import Conversation
from prefopt.evaluate.texts import Sampling
from prefopt.models.load import load_model, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.runs.sample_files import SampleGroup, draw, source_prompts
from tests.models import pictures


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3"])
def test_a_question_about_an_image_is_answered_as_the_engine_samples(family: str, tmp_path: Path) -> None:
    config = ModelConfig(path=pictures.save(family, tmp_path / "m"))
    model, tokenizer = load_model(config), load_tokenizer(config)
    pictures.write(tmp_path, 2)
    talk = Conversation(model, tokenizer, Sampling(max_new_tokens=5))
    answers = [talk.ask("What colour?", images=[str(tmp_path / f"{i}.png")]) for i in range(2)]
    data = DataConfig(path=str(tmp_path / "pairs.jsonl"), cache_dir=str(tmp_path / "cache"))
    train, _ = source_prompts(data, tokenizer)
    first = train[0].record.prompt.tolist()
    assert first == Encoder(tokenizer, DataConfig(path="chat")).prompt(talk.turns[:1])  # type: ignore[arg-type]
    (written,) = generate(model, [first], max_new_tokens=5, eos_token_id=talk.ends, temperature=0)
    assert answers[0] == tokenizer.decode(written, skip_special_tokens=True)
    assert len(talk.turns) == 4  # the second question has both images before it
    with pytest.raises(UserError, match=r"gone\.png"):
        talk.ask("What?", images=[str(tmp_path / "gone.png")])


def test_files_of_samples_keep_the_images_of_their_prompts(tmp_path: Path) -> None:
    config = ModelConfig(path=pictures.save("llava", tmp_path / "m"))
    model, tokenizer = load_model(config), load_tokenizer(config)
    file = pictures.write(tmp_path, 2)
    prompts, _ = source_prompts(DataConfig(path=str(file), cache_dir=str(tmp_path / "cache")), tokenizer)
    groups = draw("m", model, tokenizer, prompts, 2, Sampling(max_new_tokens=4, temperature=1.0), {})
    rows = [group.plain() for group in groups]
    assert rows[0]["images"] == [str(tmp_path / "0.png")]
    assert rows[0]["given"] == [{"role": "user", "content": "<image>What colour?"}]
    known = dict(PROMPTS), dict(FILES)
    try:
        PROMPTS.clear()  # as another process reads the file
        FILES.clear()
        again = [SampleGroup.of(row) for row in rows]
        assert [list(group.given) for group in again] == [list(group.given) for group in groups]
        longer = [group.answers[0].prompt for group in again]
        assert generate(model, longer, max_new_tokens=2, eos_token_id=[-1], temperature=0)
    finally:
        PROMPTS.update(known[0])
        FILES.update(known[1])
