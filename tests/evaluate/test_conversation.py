"""Turns of a conversation: remembered, cut to the context, or continued without a chat template."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.errors import UserError
from prefopt.evaluate.conversation import Conversation
from prefopt.evaluate.texts import Sampling
from prefopt.runs.run_folder import open_model

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def talk(model_folder: Path) -> Conversation:
    model, tokenizer = open_model(str(model_folder))
    tokenizer.chat_template = TURNS
    return Conversation(model, tokenizer, Sampling(max_new_tokens=5, temperature=1.0), system="Be kind.")


def test_turns_are_remembered_until_reset(talk: Conversation) -> None:
    pieces: list[str] = []
    answer = talk.ask("One?", pieces.append)
    assert "".join(pieces) == answer
    talk.ask("Two?")
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * 2
    seen = talk.tokenizer.decode(talk._within_context([*talk.turns, {"role": "user", "content": "Three?"}])[0])
    assert all(words in seen for words in ("Be kind.", "One?", "Two?", "Three?"))
    talk.reset()
    assert talk.ask("One?") == answer  # the same draws again
    assert len(talk.turns) == 2


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(talk: Conversation) -> None:
    talk.model.config.max_position_embeddings = 160
    for i in range(4):
        talk.ask(f"Question number {i}, said at some length.")
    assert talk.forgotten > 0
    assert talk.forgotten % 2 == 0
    talk.model.config.max_position_embeddings = 20
    with pytest.raises(UserError, match="shorten the text"):
        talk.ask("And now something that does not fit into twenty tokens at all.")


def test_without_a_chat_template_a_text_is_continued(model_folder: Path) -> None:
    talk = Conversation(*open_model(str(model_folder)), Sampling(max_new_tokens=4))
    prompt, _ = talk._within_context([{"role": "user", "content": "The quick"}])
    assert talk.tokenizer.decode(prompt) == "The quick"
    talk.ask("The quick")
    assert talk.turns == []
