"""Renders records as the texts that the model sees, by a chat template or as plain text."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from prefopt.data.data_config import DataConfig
from prefopt.data.record import Message, RowError, Text
from prefopt.errors import UserError

NAMED = Path(__file__).with_name("chat_templates")
SENTINEL = "prefopt0sentinel"
CLOCK = "strftime_now"  # the function by which templates read today's date
DIRECTIVES = "aAbBcdDeFHIjmMpSTuUVwWxXyYzZ"  # of its formats


@dataclass(frozen=True)
class Rendered:
    """The texts of one record.

    Attributes:
        prompt: the prompt, including the header of the answer.
        full: prompt and completion, one text per completion, including the token that ends the turn.
        single: whether a completion is one turn, in which the end token may occur only once.
    """

    prompt: str
    full: list[str]
    single: list[bool]


def template_source(name: str, tokenizer: Any) -> str | None:
    """The Jinja source that `data.template` names, or None for plain text.

    Raises:
        UserError: no such template.
    """
    if name == "auto":
        own = tokenizer.chat_template
        return own.get("default") if isinstance(own, dict) else own
    if name == "plain":
        return None
    for path in (Path(name), NAMED / f"{name}.jinja"):
        if path.suffix == ".jinja" and os.path.isfile(path):  # the text of a template is too long for a name
            return path.read_text(encoding="utf-8")
    known = ["auto", "plain", *sorted(path.stem for path in NAMED.glob("*.jinja"))]
    raise UserError(f"no template {name[:200]!r}: data.template is one of {known}, or a .jinja file")


class Plain:
    """Renders without a template: text unchanged, turns as paragraphs `User: ...`, the answer after `Assistant:`."""

    source: str | None = None

    def __init__(self, system: str = "keep") -> None:
        self.system = system

    def render(self, prompt: Text, completions: tuple[Text, ...]) -> Rendered:
        """The texts of a record."""
        prompt = with_system(prompt, self.system)
        if isinstance(prompt, str):
            return Rendered(
                prompt,
                [prompt + (said if isinstance(said, str) else _transcript(said)) for said in completions],
                [isinstance(said, str) for said in completions],
            )
        head = f"{_transcript(prompt)}\n\nAssistant:"
        tails = [f" {said}" if isinstance(said, str) else _transcript(said).removeprefix("Assistant:")
                 for said in completions]  # fmt: skip
        return Rendered(head, [head + tail for tail in tails], [isinstance(said, str) for said in completions])


class Chat:
    """Renders with a chat template as transformers defines it, run in its sandbox."""

    def __init__(self, tokenizer: Any, source: str, system: str = "keep") -> None:
        self.tokenizer, self.source, self.system = tokenizer, source, system
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special = sorted(special | set(tokenizer.all_special_tokens), key=len, reverse=True)
        self._closing: str | None = None
        self.end_token: str | None = None  # what ends an answer; known after the first one is rendered

    def render(self, prompt: Text, completions: tuple[Text, ...]) -> Rendered:
        """The texts of a record; RowError if the template fails on it."""
        asked = _turns(with_system(prompt, self.system), "user")
        head = self._text(asked, answer_next=True)
        full = [self._full(asked, head, said) for said in completions]
        return Rendered(head, full, [isinstance(said, str) for said in completions])

    def _full(self, asked: list[Message], head: str, said: Text) -> str:
        answer = _turns(said, "assistant")
        whole = self._text(asked + answer)
        closing = self._closing_of(asked, answer, whole)
        kept = self._up_to_end_token(closing)
        if whole.startswith(head):
            return whole[: len(whole) - len(closing)] + kept
        if isinstance(said, str):
            # The header of the answer to generate differs from that of a given answer (by thinking tags, say): train
            # with the one that the model will see when it generates.
            return head + said + kept
        raise RowError("template_error", "the template rewrites the prompt when an answer of several turns follows it")

    def _closing_of(self, asked: list[Message], answer: list[Message], whole: str) -> str:
        """What the template prints after an answer; mostly the same for all records."""
        if self._closing is not None and whole.endswith(self._closing):
            return self._closing
        probe = self._text(asked + answer[:-1] + [{**answer[-1], "content": SENTINEL}])
        self._closing = probe.rpartition(SENTINEL)[2]
        if SENTINEL not in probe or not whole.endswith(self._closing):
            raise RowError("template_error", "the template does not print the answer unchanged")
        return self._closing

    def _up_to_end_token(self, closing: str) -> str:
        found = [(closing.index(token), -len(token)) for token in self._special if token in closing]
        if not found:
            return ""
        start, negative = min(found)
        self.end_token = closing[start : start - negative]
        return closing[: start - negative]

    def _text(self, turns: list[Message], *, answer_next: bool = False) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                turns, chat_template=self.source, tokenize=False, add_generation_prompt=answer_next
            )
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"the chat template is not valid Jinja: {error}") from error
        except Exception as error:  # a template can raise any exception
            remedy = (
                "; set data.system=merge or data.system=drop for templates without system turns"
                if turns[0]["role"] == "system"
                else ""
            )
            raise RowError("template_error", f"the chat template fails on this dialogue: {error}{remedy}") from error
        return text


def renderer(tokenizer: Any, template: str, system: str = "keep", date: str = DataConfig.date) -> Plain | Chat:
    """The renderer that `data.template` names, for this tokenizer."""
    source = template_source(template, tokenizer)
    return Plain(system) if source is None else Chat(tokenizer, on_date(source, date), system)


def on_date(source: str, date: str) -> str:
    """A template in which it is always this day, so that the same records give the same tokens on any day."""
    if CLOCK not in source:
        return source
    day = datetime.date.fromisoformat(date)
    replaced = "".join(f".replace('%{d}', {day.strftime(f'%{d}')!r})" for d in DIRECTIVES)
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{source}"


def with_system(prompt: Text, policy: str) -> Text:
    """The prompt with its system turn kept, merged into the first user turn, or dropped."""
    if policy == "keep" or isinstance(prompt, str) or prompt[0]["role"] != "system" or len(prompt) == 1:
        return prompt
    system, following, *rest = prompt
    if policy == "merge" and following["role"] == "user":
        following = {**following, "content": f"{system['content']}\n\n{following['content']}"}
    return (following, *rest)


def _turns(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def _transcript(turns: tuple[Message, ...]) -> str:
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)
