"""Reports what of the data is trained and what is context, and what a template's switch of thinking changes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from prefopt.data.data_config import DataConfig
from prefopt.data.jinja_source import template_source
from prefopt.data.record import Record, RowError
from prefopt.data.token_table import TokenTable
from prefopt.data.tokenize import Encoder

PARTS = ("prompts", "completions", "rejected with", "rejected without")
SAMPLE = 256  # records whose tokens are compared
SWITCH = re.compile(r"(?<![\w.'\"])(enable_thinking|thinking)\b(?!['\"])")  # as an argument, not as a key of a turn


def token_line(table: TokenTable) -> str:
    """How many tokens are trained, and how many the model only reads."""
    lengths, given, opened = table.completion_lengths()[0], table.given(), table.opened()
    inside = f", {given.sum()} inside completions of {np.count_nonzero(given)} records" if given.any() else ""
    line = f"tokens: {lengths.sum() - given.sum()} trained; context: {table.prompt_lengths().sum()} of prompts{inside}"
    return f"{line}; {opened.sum()} completions open (they do not end their turns)" if opened.any() else line


def thinking_lines(records: Sequence[Record], tokenizer: Any, config: DataConfig) -> Iterator[str]:
    """How many rows change where thinking is switched on or off; nothing for templates without a switch."""
    switch = SWITCH.search(template_source(config.template, tokenizer) or "")
    if switch is None or not records:
        return
    name = switch[1]
    settings = [replace(config, chat_template_kwargs={**config.chat_template_kwargs, name: on}) for on in (True, False)]
    encoders = [Encoder(tokenizer, one) for one in settings]
    places = np.linspace(0, len(records) - 1, min(SAMPLE, len(records))).round().astype(int).tolist()
    found: Counter[str] = Counter()
    for record in (records[i] for i in places):
        on, off = (_tokens(encoder, record) for encoder in encoders)
        found["rows"] += on != off
        for part, a, b in zip(("prompts", "completions"), on or (), off or (), strict=False):
            found[part] += a != b
        found["rejected without"] += on is not None and off is None
        found["rejected with"] += on is None and off is not None
    parts = ", ".join(f"{part} {found[part]}" for part in PARTS if found[part])
    yield (f"thinking: {found['rows']} of {len(places)} rows change between {name}: true and false"
           f"{f' ({parts})' if parts else ''}; set it with data.chat_template_kwargs")  # fmt: skip


def _tokens(encoder: Encoder, record: Record) -> tuple[list[int], list[list[int]]] | None:
    try:
        return encoder.encode(replace(record, arguments={k: v for k, v in record.arguments.items() if k == "tools"}))
    except RowError:
        return None
