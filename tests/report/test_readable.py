"""Prompts of chat templates are shown as turns."""

from __future__ import annotations

import pytest

from prefopt.data.templates import TEMPLATE_MARKS
from prefopt.report.readable import readable


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<bos><start_of_turn>user\nHi!<end_of_turn>\n<start_of_turn>model\n",
        "<|user|>\nHi!</s>\n<|assistant|>\n",
        "<s>[INST] Hi! [/INST]",
        "<|start|>user<|message|>Hi!<|end|><|start|>assistant",
        "<｜begin▁of▁sentence｜><｜User｜>Hi!<｜Assistant｜>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi!<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ],
)
def test_turns_instead_of_tokens(prompt: str) -> None:
    assert readable(prompt) == "user: Hi!"


def test_several_turns() -> None:
    turns = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in
                    (("system", "Be brief."), ("user", "a\n\nb"), ("assistant", "c"), ("user", "d")))  # fmt: skip
    shown = readable(turns + "<|im_start|>assistant\n")
    assert shown == "system: Be brief.\nuser: a\n\nb\nassistant: c\nuser: d"
    assert TEMPLATE_MARKS.search(shown) is None


def test_other_texts_stay() -> None:
    assert readable("if a <b> or <|x|>, [1] then") == "if a <b> or <|x|>, [1] then"
    assert readable("<bos> the room was") == "the room was"
