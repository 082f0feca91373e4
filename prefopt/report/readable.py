"""Shows prompts that a chat template wrote as a person reads them: who says what, without the template's tokens."""

from __future__ import annotations

import re

# Headers of turns: ChatML, Llama 3, Gemma, gpt-oss, Zephyr and Phi, DeepSeek, Cohere.
HEADER = re.compile(
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|start\|>|<\|(?=(?:system|user|assistant|tool)\|>)"
    r"|<｜(?=(?:User|Assistant)｜>)|<\|START_OF_TURN_TOKEN\|><\|(?=[A-Z]+_TOKEN\|>))"
    r"([A-Za-z]+)(?:_TOKEN\|>|<\|end_header_id\|>|<\|message\|>|\|>|｜>)?\s*"
)
# The beginning and end of texts and turns, which say nothing to a reader.
ENDS = re.compile(
    r"<\|(?:im_end|eot_id|begin_of_text|end_of_text|endoftext|end|return|END_OF_TURN_TOKEN)\|>|<(?:bos|eos|end_of_turn)>|</?s>"
    r"|<｜(?:begin|end)▁of▁\w+｜>"
)
NAMES = {"model": "assistant", "chatbot": "assistant"}


def readable(prompt: str) -> str:
    """Return a prompt with `user: ` and the like in place of its template's tokens; other texts stay as they are."""
    text = re.sub(r"\[INST\]\s*", "\nuser: ", re.sub(r"\s*\[/INST\]\s*", "\nassistant: ", prompt))  # Mistral
    text = HEADER.sub(lambda turn: f"\n{NAMES.get(turn[1].lower(), turn[1].lower())}: ", text)
    if text == prompt:
        return ENDS.sub("", prompt).strip()
    lines = re.sub(r"\n{2,}(?=\w+: )", "\n", ENDS.sub("", text)).strip()
    return re.sub(r"\n?assistant:\s*\Z", "", lines)  # the open turn, whose answers stand beside it
