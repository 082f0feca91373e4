"""Makes valid records of each kind; the only place with rules about what a record may hold."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.common.digest import of_bytes
from prefopt.data.fields import blank
from prefopt.data.record import Record, RowError, Text, is_trained
from prefopt.plugin import Data


def pair(prompt: Text, chosen: Text, rejected: Text, *, scores: tuple[float, float] | None = None, weight: float = 1.0,
         margin: float | None = None, probability: float | None = None) -> Record:  # fmt: skip
    """A PAIRS record, maybe a tie (see `prefopt.data.record.is_tie`), which `data.ties` decides about."""
    if probability is not None and not 0 <= probability <= 1:
        raise RowError("bad_probability", f"a probability must be from 0 to 1, not {probability:g}")
    made = _record(Data.PAIRS, prompt, (chosen, rejected), scores=scores, weight=weight)
    return dataclasses.replace(made, margin=margin, probability=probability)


def unpaired(prompt: Text, completion: Text, desirable: bool, *, weight: float = 1.0) -> Record:
    """An UNPAIRED record."""
    return _record(Data.UNPAIRED, prompt, (completion,), desirable=desirable, weight=weight)


def ranked(prompt: Text, completions: Sequence[Text], scores: Sequence[float], *, weight: float = 1.0) -> Record:
    """A LISTS record of at least two completions; a higher score is better."""
    if len(completions) != len(scores):
        raise RowError("score_count", f"{len(completions)} completions but {len(scores)} scores")
    if len(completions) < 2:
        raise RowError("too_few_completions", f"a list needs two completions or more, this row has {len(completions)}")
    return _record(Data.LISTS, prompt, tuple(completions), scores=tuple(scores), weight=weight)


def demonstration(prompt: Text, completion: Text, *, weight: float = 1.0) -> Record:
    """A DEMONSTRATIONS record."""
    return _record(Data.DEMONSTRATIONS, prompt, (completion,), weight=weight)


def with_facts(record: Record, arguments: Mapping[str, Any], ended: tuple[bool, ...] | None) -> Record:
    """The record with arguments for its chat template and open completions, which are part of its content."""
    if ended is not None and len(ended) != len(record.completions):
        raise RowError("wrong_type", f"'ended' has {len(ended)} values for {len(record.completions)} completions")
    if ended is None or all(ended):
        ended = None
    if not arguments and ended is None:
        return record if record.ended is None else dataclasses.replace(record, ended=None)
    name = content_hash([record.id, arguments, *([ended] if ended else [])])
    return dataclasses.replace(record, id=name, arguments=arguments, ended=ended)


def prompt_alone(prompt: Text) -> Record:
    """A PROMPTS record."""
    return _record(Data.PROMPTS, prompt, ())


def content_hash(value: Any) -> str:
    """16 hex digits of a JSON-like value, the same under every encoding, Unicode composition and line ending."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    text = unicodedata.normalize("NFC", text.replace("\\r\\n", "\\n"))
    return of_bytes(text.encode(), size=8)


def _record(kind: Data, prompt: Text, completions: tuple[Text, ...], *, desirable: bool | None = None,
            scores: tuple[float, ...] | None = None, weight: float = 1.0) -> Record:  # fmt: skip
    if not prompt or (blank(prompt) if isinstance(prompt, str) else all(blank(turn["content"]) for turn in prompt)):
        raise RowError("empty_prompt", "the prompt is empty or blank; a completion needs a prompt to answer")
    for side, completion in zip(_sides(kind, len(completions)), completions, strict=True):
        if not isinstance(completion, str) and completion[0]["role"] != "assistant":
            raise RowError("not_an_answer", f"the {side} completion must begin with an assistant turn, "
                                            f"not {completion[0]['role']!r}")  # fmt: skip
        if _nothing_said(completion):
            raise RowError("empty_completion", f"the {side} completion is empty or blank")
    if kind is Data.PAIRS and completions[0] == completions[1]:
        raise RowError("identical_sides", "chosen and rejected are the same text: they express no preference")
    content = [kind.value, prompt, completions, desirable, scores, weight]
    return Record(id=content_hash(content), kind=kind, prompt=prompt, completions=completions,
                  desirable=desirable, scores=scores, weight=weight)  # fmt: skip


def _nothing_said(text: Text) -> bool:
    if isinstance(text, str):
        return blank(text)
    return all(
        blank(turn["content"]) and not turn.get("tool_calls") and not turn.get("reasoning_content")
        for turn in text
        if is_trained(turn)
    )


def _sides(kind: Data, count: int) -> tuple[str, ...]:
    if kind is Data.PAIRS:
        return ("chosen", "rejected")
    return ("only",) if count == 1 else tuple(f"{i}." for i in range(count))
