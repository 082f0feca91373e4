"""Writes turns as chat templates read them."""

from __future__ import annotations

import json
from typing import Any

from prefopt.data.images.image_files import IMAGE_MARK
from prefopt.data.record import Message


def for_template(turn: Message, in_parts: bool) -> dict[str, Any]:
    """A turn as templates expect it; they read thoughts under several names, and images as parts."""
    made: dict[str, Any] = {name: value for name, value in turn.items() if name != "train"}
    if in_parts or IMAGE_MARK.search(turn["content"]):
        pieces = IMAGE_MARK.split(turn["content"])  # texts, with digests of images between them
        made["content"] = [{"type": "image"} if i % 2 else {"type": "text", "text": piece}
                           for i, piece in enumerate(pieces) if i % 2 or piece]  # fmt: skip
    if reasoning := turn.get("reasoning_content"):
        made |= {"thinking": reasoning, "reasoning": reasoning}
    return made


def with_text_arguments(turns: list[Message]) -> list[Message]:
    """The turns with the arguments of tool calls as JSON texts, for templates that join them to other texts."""

    def changed(call: Any) -> Any:
        inner = {**call.get("function", call)}
        if isinstance(inner.get("arguments"), dict):
            inner["arguments"] = json.dumps(inner["arguments"], ensure_ascii=False)
        return {**call, "function": inner} if "function" in call else inner

    return [{**turn, "tool_calls": [*map(changed, turn["tool_calls"])]} if "tool_calls" in turn else turn
            for turn in turns]  # fmt: skip
