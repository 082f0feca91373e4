"""Renders records as the texts that the model sees, by a chat template or as plain text."""

from __future__ import annotations

import datetime
import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from prefopt.data.data_config import DataConfig
from prefopt.data.fields import blank
from prefopt.data.record import Message, RowError, Text
from prefopt.errors import UserError

NAMED = Path(__file__).with_name("chat_templates")
SENTINEL = "prefopt0sentinel"
CLOCK = "strftime_now"  # the function by which templates read today's date
DIRECTIVES = "aAbBcdDeFHIjmMpSTuUVwWxXyYzZ"  # of its formats
QUESTION: Message = {"role": "user", "content": SENTINEL}
ANSWER: Message = {"role": "assistant", "content": SENTINEL}
TEMPLATE_MARKS = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|begin_of_text|(?:start|end)_header_id|assistant|user|system|end|return|channel)\|>"
    r"|\[/?INST\]|<(?:start|end)_of_turn>|<</?SYS>>|<｜[^｜\s]+｜>|<\|(?:START|END)_OF_TURN_TOKEN\|>"
)
THOUGHT = re.compile(r"</?think>")
BLOCK = re.compile(r"(?P<tag><(?P<closes>/?)(?P<name>(?:think|thought|reason|analysis|scratchpad)\w*)>)(?P<space>\s*)$")


@dataclass(frozen=True)
class Rendered:
    """The texts of one record.

    Attributes:
        prompt: the prompt, including the header of the answer.
        full: prompt and completion, one text per completion, including the token that ends the turn.
        single: whether a completion is one turn, in which the end token may occur only once.
        ends: the special token that ends each completion, if the template prints one.
    """

    prompt: str
    full: list[str]
    single: list[bool]
    ends: list[str | None]


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
    marks: re.Pattern[str] | None = None

    def __init__(self, system: str = "keep") -> None:
        self.system = system

    def render(self, prompt: Text, completions: tuple[Text, ...]) -> Rendered:
        """The texts of a record."""
        prompt = with_system(prompt, self.system)
        ends: list[str | None] = [None] * len(completions)
        single = [isinstance(said, str) for said in completions]
        if isinstance(prompt, str):
            full = [prompt + (said if isinstance(said, str) else _transcript(said)) for said in completions]
            return Rendered(prompt, full, single, ends)
        head = _transcript(prompt)
        tails = [said if isinstance(said, str) else _transcript(said).removeprefix("Assistant: ")
                 for said in completions]  # fmt: skip
        begun = _begun(prompt, completions)
        if begun == "":
            head = _transcript(prompt[:-1])
        if not begun:
            head, tails = f"{head}\n\nAssistant:", [f" {tail}" for tail in tails]
        return Rendered(head, [head + tail for tail in tails], single, ends)


@dataclass(frozen=True)
class _Start:
    """What comes before an answer.

    Attributes:
        asked: the turns of the prompt.
        header: these turns as printed, and the header of the answer.
        begun: the beginning of the answer, from the prompt.
        block: the tag with which the header ends, such as <think>.
    """

    asked: list[Message]
    header: str
    begun: str
    block: re.Match[str] | None

    def joined(self, said: str) -> str:
        """The text with an answer; a block that both header and answer open is opened once."""
        block, said = self.block, self.begun + said
        if block is None or block["closes"] or not said.lstrip().startswith(block["tag"]):
            return self.header + said
        return self.header + said.lstrip().removeprefix(block["tag"]).removeprefix(block["space"])

    def opened_twice(self, answer: list[Message], whole: str) -> bool:
        """Whether the template opens a block of thoughts before an answer that brings its own."""
        if not answer[0]["content"].lstrip().startswith("<think>"):
            return False
        opened = self.block is not None and not self.block["closes"]
        printed = whole.count("<think>") - self.header.count("<think>") + opened
        return printed > sum(turn["content"].count("<think>") for turn in answer)

    def check_block(self, text: str) -> None:
        """Raise RowError if the answer opens the block of its header again, or leaves it open."""
        if self.block is None:
            return
        answer = text[len(self.header.rstrip()) :]
        tag, close = f"<{self.block['name']}>", f"</{self.block['name']}>"
        if answer.lstrip().startswith(tag):
            raise RowError("second_block", f"the template begins an answer with {self.block['tag']}, and this answer "
                                           f"opens {tag} again")  # fmt: skip
        if not self.block["closes"] and close not in answer:
            raise RowError(
                "unclosed_block",
                f"the template begins an answer with {tag}, and this answer has no {close}: give answers with that "
                "part, or a template that does not open it (data.template=FILE.jinja)",
            )


class Chat:
    """Renders with a chat template as transformers defines it, run in its sandbox.

    A record is rendered the same whatever came before it.
    """

    def __init__(self, tokenizer: Any, source: str, system: str = "keep") -> None:
        self.tokenizer, self.source, self.system = tokenizer, source, system
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special |= set(tokenizer.all_special_tokens)
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")

    @cached_property
    def marks(self) -> re.Pattern[str]:
        """The special tokens, and the marks of well-known templates, which have no place in a text."""
        return re.compile(f"{self._special.pattern}|{TEMPLATE_MARKS.pattern}")

    @cached_property
    def end_token(self) -> str | None:
        """The token that ends a plain answer."""
        return self._ending(self._closing or "")[1]

    @cached_property
    def _closing(self) -> str | None:
        """What the template prints after a plain answer; None if it accepts no dialogue of one question."""
        try:
            return self._after([QUESTION, ANSWER])
        except RowError:
            return None

    @cached_property
    def _block(self) -> re.Match[str] | None:
        """The tag of a block of thoughts with which the header of an answer ends."""
        try:
            header = self._after([QUESTION], answer_next=True)
        except RowError:
            return None
        return BLOCK.search(header)

    def render(self, prompt: Text, completions: tuple[Text, ...]) -> Rendered:
        """The texts of a record; RowError if the template fails on it, or leaves out a part of it."""
        asked = _turns(with_system(prompt, self.system), "user")
        begun = _begun(tuple(asked), completions)
        if begun is not None:
            asked = asked[:-1]
        header, block = self._text(asked, answer_next=True), self._block
        if lost := _not_printed(asked, header):
            raise _lost(lost)
        if begun and not begun.lstrip().startswith("<think>"):  # the header of a given answer, which this one is
            given = self._text([*asked, ANSWER]).rpartition(SENTINEL)[0]
            header, block = given or header, None
        start = _Start(asked, header, begun or "", block)
        full = [self._full(start, said) for said in completions]
        single = [isinstance(said, str) for said in completions]
        return Rendered(start.joined(""), [text for text, _ in full], single, [end for _, end in full])

    def _full(self, start: _Start, said: Text) -> tuple[str, str | None]:
        """Prompt and one completion, and the token that ends them."""
        first, *more = _turns(said, "assistant")
        answer: list[Message] = [{**first, "content": start.begun + first["content"]}, *more]
        whole = self._text(start.asked + answer)
        body, kept, end = self._cut(start.asked, answer, whole)
        lost = _not_printed(answer, whole, thoughts=True)
        # A template may leave out the last line break of the header where it goes on with </think>.
        if whole.startswith(start.joined("").rstrip()) and not lost and not start.opened_twice(answer, whole):
            text = body + kept
        elif isinstance(said, str):
            # The header of the answer to generate differs from that of a given answer, or the template changes the
            # answer's thoughts: train with the header that the model will see when it generates, and the whole answer.
            text = start.joined(said) + kept
        elif lost:
            raise _lost(lost)
        else:
            raise RowError("template_error", "the template prints another header before this answer of several turns "
                                             "than before one to generate")  # fmt: skip
        start.check_block(text)
        return text, end

    def _cut(self, asked: list[Message], answer: list[Message], whole: str) -> tuple[str, str, str | None]:
        """(dialogue up to the end of its last turn, the end of that turn with its token, this token)."""
        closing = self._closing
        if closing is None or not whole.endswith(closing):  # it depends on the dialogue
            closing = self._after([*asked, *answer[:-1], ANSWER])
        if whole.endswith(closing):
            kept, end = self._ending(closing)
            return whole[: len(whole) - len(closing)], kept, end
        *_, last = [None, *self._special.finditer(whole)]  # a turn of tool calls may end in its own way
        if last is None or whole[last.end() :].strip():
            raise RowError("template_error", "the template does not print the answer unchanged")
        return whole[: last.start()], last[0], last[0]

    def _after(self, turns: list[Message], *, answer_next: bool = False) -> str:
        """What the template prints after the content of the last turn, which is the sentinel."""
        return self._text(turns, answer_next=answer_next).rpartition(SENTINEL)[2]

    def _ending(self, closing: str) -> tuple[str, str | None]:
        """What is kept of the text after an answer: all up to its first special token; and this token."""
        found = self._special.search(closing)
        return (closing[: found.end()], found[0]) if found else ("", None)

    def _text(self, turns: list[Message], *, answer_next: bool = False) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                turns, chat_template=self.source, tokenize=False, add_generation_prompt=answer_next
            )
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"the chat template is not valid Jinja: {error}") from error
        except Exception as error:  # a template can raise any exception
            if isinstance(error, TypeError) and (changed := _with_text_arguments(turns)) != turns:
                return self._text(changed, answer_next=answer_next)
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
    fields = {f"%{letter}": day.strftime(f"%{letter}") for letter in DIRECTIVES}
    fields |= {f"%-{letter}": fields[f"%{letter}"].lstrip("0") for letter in "dmj"}  # without leading zeros
    replaced = "".join(f".replace({name!r}, {value!r})" for name, value in fields.items())
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


def _with_text_arguments(turns: list[Message]) -> list[Message]:
    """The turns with the arguments of tool calls as JSON texts, for templates that join them to other texts."""

    def changed(call: Any) -> Any:
        inner = {**call.get("function", call)}
        if isinstance(inner.get("arguments"), dict):
            inner["arguments"] = json.dumps(inner["arguments"], ensure_ascii=False)
        return {**call, "function": inner} if "function" in call else inner

    return [{**turn, "tool_calls": [*map(changed, turn["tool_calls"])]} if "tool_calls" in turn else turn
            for turn in turns]  # fmt: skip


def _begun(prompt: tuple[Message, ...], completions: tuple[Text, ...]) -> str | None:
    """The beginning of the answer, where a prompt ends with an assistant turn, which the completions continue.

    Raises:
        RowError: the completions repeat it.
    """
    last = prompt[-1]
    if len(prompt) == 1 or last["role"] != "assistant" or last.get("tool_calls"):
        return None
    begun = last["content"]
    starts = [said if isinstance(said, str) else said[0]["content"] for said in completions]
    if blank(begun):
        return ""
    if starts and all(start.startswith(begun) for start in starts):
        raise RowError(
            "repeated_prefill",
            "the prompt ends with the beginning of the answer, which the completions continue; here they repeat it",
        )
    return begun


def _not_printed(turns: list[Message], text: str, *, thoughts: bool = False) -> str | None:
    """What a template left out of these turns; of earlier answers their thoughts may be."""
    for turn in turns:
        parts = THOUGHT.split(turn["content"])
        if not all(_printed(part.strip(), text) for part in (parts if thoughts else parts[-1:])):
            return f"the turn of the {turn['role']}"
        for call in turn.get("tool_calls", ()):
            if (name := str(call.get("function", call).get("name", ""))) not in text:
                return f"the call of the tool {name!r}"
    return None


def _printed(said: str, text: str) -> bool:
    """Whether a text is printed as it is, as a JSON string, or with other spaces."""
    return (
        said in text
        or json.dumps(said, ensure_ascii=False)[1:-1] in text
        or re.sub(r"\W+", "", said) in re.sub(r"\W+", "", text)
    )


def _lost(what: str) -> RowError:
    remedy = "; set data.system=merge" if what.endswith("system") else ""
    return RowError("turn_not_printed", f"the chat template does not print {what}, which would be lost{remedy}")
