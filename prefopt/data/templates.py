"""Renders records as the texts that the model sees, by a chat template or as plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import jinja2

from prefopt.data.answers import BLOCK, RenderedAnswer, Start, beginning, left_out, not_printed, span_of, trained_part
from prefopt.data.data_config import DataConfig
from prefopt.data.images.inputs import inputs_of
from prefopt.data.jinja_source import on_date, template_source
from prefopt.data.record import Message, RowError, Text, is_trained
from prefopt.data.row_facts import tool_names, unknown
from prefopt.data.template_turns import for_template, with_text_arguments
from prefopt.errors import UserError

VARIANTS = 64  # sets of arguments whose renderers are kept
GENERATION = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")  # the tags by which templates mark the assistant's
MARK = "\ue0f1"
SENTINEL = "prefopt0sentinel"
QUESTION: Message = {"role": "user", "content": SENTINEL}
ANSWER: Message = {"role": "assistant", "content": SENTINEL}
TEMPLATE_MARKS = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|begin_of_text|(?:start|end)_header_id|assistant|user|system|end|return|channel)\|>"
    r"|\[/?INST\]|<(?:start|end)_of_turn>|<</?SYS>>|<｜[^｜\s]+｜>|<\|(?:START|END)_OF_TURN_TOKEN\|>"
)


@dataclass(frozen=True)
class Rendered:
    """The prompt of one record, including the header of the answer, and its answers."""

    prompt: str
    answers: list[RenderedAnswer]


class Plain:
    """Renders without a template: text unchanged, turns as paragraphs `User: ...`, the answer after `Assistant:`."""

    source: str | None = None
    marks: re.Pattern[str] | None = None
    arguments: Mapping[str, Any] = {}

    def __init__(self, system: str = "keep") -> None:
        self.system = system

    def given(self, arguments: Mapping[str, Any]) -> Plain:
        """This; RowError for a record with arguments, which plain text cannot show."""
        for name in arguments:
            raise RowError("unread_input", f"plain text has no place for {name!r}; choose a chat template, or give "
                                           f"{_ignoring(name)} to train without it")  # fmt: skip
        return self

    def render(self, prompt: Text, completions: tuple[Text, ...], ended: tuple[bool, ...] | None = None) -> Rendered:
        """The texts of a record."""
        prompt = with_system(prompt, self.system)
        ended = ended or (True,) * len(completions)
        if isinstance(prompt, str):
            answers = [self._answer(prompt, "" if isinstance(said, str) else "Assistant: ", said, end)
                       for said, end in zip(completions, ended, strict=True)]  # fmt: skip
            return Rendered(prompt, answers)
        head, before = _transcript(prompt), ""
        begun = beginning(prompt, completions)
        if begun == "":
            head = _transcript(prompt[:-1])
        if not begun:
            head, before = f"{head}\n\nAssistant:", " "
        return Rendered(head, [self._answer(head, before, said, end)
                               for said, end in zip(completions, ended, strict=True)])  # fmt: skip

    def _answer(self, head: str, before: str, said: Text, ended: bool) -> RenderedAnswer:
        """One answer after its head; `before` is printed between them."""
        first, *more = trained_part(said)
        if any(turn.get("tool_calls") for turn in (first, *more)):
            raise left_out("a call of a tool", "; choose a chat template (data.template)")
        text = head + before + first["content"]
        spans = [(len(head), len(text))] if is_trained(first) else []
        for turn in more:
            text += f"\n\n{turn['role'].capitalize()}:"
            start, text = len(text), f"{text} {turn['content']}"
            if is_trained(turn):
                spans.append((start, len(text)))
        return RenderedAnswer(text, None, isinstance(said, str), ended, tuple(spans) if more else None)


class Chat:
    """Renders with a chat template as transformers defines it, run in its sandbox.

    A record is rendered the same whatever came before it.
    """

    def __init__(
        self, tokenizer: Any, source: str, system: str = "keep", arguments: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer, self.source, self.system = tokenizer, source, system
        self.arguments: Mapping[str, Any] = arguments or {}
        self._others: dict[str, Chat] = {}
        self._starts: dict[str, Start] = {}  # of the record that is rendered
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special |= set(tokenizer.all_special_tokens)
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")

    def given(self, arguments: Mapping[str, Any]) -> Chat:
        """The renderer of a record with these arguments, which go before those of the data."""
        if not arguments:
            return self
        if name := unknown(arguments, self.source):
            raise RowError("unread_input", f"the chat template does not read {name!r}; choose another one, or give "
                                           f"{_ignoring(name)} to train without it")  # fmt: skip
        own = {**self.arguments, **arguments}
        tools = own.pop("tools", None)
        key = json.dumps(own, sort_keys=True)
        if key not in self._others:
            if len(self._others) >= VARIANTS:
                self._others.clear()
            self._others[key] = Chat(self.tokenizer, self.source, self.system, own)
        found = self._others[key]
        if tools is None:
            return found
        _ = found._closing, found._block  # they do not depend on the tools
        found = copy(found)
        found.arguments = {**own, "tools": tools}
        return found

    @cached_property
    def marks(self) -> re.Pattern[str]:
        """The special tokens, and the marks of well-known templates, which have no place in a text."""
        return re.compile(f"{self._special.pattern}|{TEMPLATE_MARKS.pattern}")

    @cached_property
    def end_token(self) -> str | None:
        """The token that ends a plain answer."""
        return self._ending(self._closing or "")[1]

    @cached_property
    def _in_parts(self) -> bool:
        """Whether the template prints no turns that are texts, but lists of parts, as some for images do."""
        if inputs_of(self.tokenizer) is None:
            return False
        try:
            text = self.tokenizer.apply_chat_template([QUESTION], chat_template=self.source, tokenize=False)
        except Exception:  # a template can raise any exception
            return True
        return SENTINEL not in text

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

    def render(self, prompt: Text, completions: tuple[Text, ...], ended: tuple[bool, ...] | None = None) -> Rendered:
        """The texts of a record; RowError if the template fails on it, or leaves out a part of it."""
        asked = _turns(with_system(prompt, self.system), "user")
        begun = beginning(tuple(asked), completions)
        if begun is not None:
            asked = asked[:-1]
        header, block = self._text(asked, answer_next=True), self._block
        lost = not_printed(asked, header)
        lost = lost or next((f"the tool {n!r}" for n in tool_names(self.arguments.get("tools", [])) if n not in header),
                            None)  # fmt: skip
        if lost:
            raise left_out(lost)
        if begun and not begun.lstrip().startswith("<think>"):  # the header of a given answer, which this one is
            given = self._text([*asked, ANSWER]).rpartition(SENTINEL)[0]
            header, block = given or header, None
        start = Start(asked, header, begun or "", block)
        self._starts = {}
        ended = ended or (True,) * len(completions)
        answers = [self._answer(start, said, end) for said, end in zip(completions, ended, strict=True)]
        return Rendered(start.joined(""), answers)

    def _answer(self, start: Start, said: Text, ended: bool) -> RenderedAnswer:
        """One completion: its last turn as an answer to all before it, in which its earlier turns must stand."""
        first, *more = trained_part(said)
        if not more:
            return RenderedAnswer(*self._one(start, first, ended), plain=isinstance(said, str), ended=ended)
        begun: Message = {**first, "content": start.begun + first["content"]}
        *before, last = [begun, *more]
        later = self._start([*start.asked, *before])
        text, end = self._one(later, last, ended)
        spans = []
        for i, turn in enumerate(before):
            if is_trained(turn):
                at = self._start([*start.asked, *before[:i]]) if i else start
                spans.append(self._span(at, turn if i else first, text))
        header = later.header if text.startswith(later.header) else later.header.rstrip()
        spans.append((len(header), len(text)))
        self._check_marked([*start.asked, *before, last], text, spans)
        return RenderedAnswer(text, end, not last.get("tool_calls"), ended, tuple(spans))

    def _span(self, start: Start, turn: Message, text: str) -> tuple[int, int]:
        """Where an earlier turn of a completion stands in its text."""
        header, kept = start.joined(""), self._ending(self._closing or "")[0]
        whole = f"{header}{turn['content']}{kept}"
        plain = start.block is None and not turn.keys() & {"tool_calls", "reasoning_content"}
        if kept and plain and text.startswith(whole):  # nearly always
            return len(header), len(whole)
        return span_of(header, *self._one(start, turn), text, self._special)

    def _start(self, asked: list[Message]) -> Start:
        """What comes before an answer to these turns, which the completions of a record often share."""
        if (found := self._starts.get(key := repr(asked))) is None:
            header = self._text(asked, answer_next=True)
            if lost := not_printed(asked, header):
                raise left_out(lost)
            found = self._starts[key] = Start(asked, header, "", self._block)
        return found

    def _check_marked(self, turns: list[Message], text: str, spans: list[tuple[int, int]]) -> None:
        """Compare spans with what the template marks as generated, where it does.

        Marks may cover more of the template (headers, line breaks) or less (the end token) than is trained, but each
        trained turn stands in a region of its own, and each turn of the assistant has one.

        Raises:
            RowError: they disagree.
        """
        if self._marked is None:
            return
        pieces = self._text(turns, source=self._marked).split(MARK)
        ends = [0, *accumulate(map(len, pieces))]
        regions = [(ends[i], ends[i + 1]) for i in range(1, len(pieces), 2) if pieces[i].strip()]
        expected = sum(turn["role"] == "assistant" for turn in turns)
        if "".join(pieces).startswith(text) and (
            len(regions) != expected or not all(any(a <= start < b for a, b in regions) for start, _ in spans)
        ):
            raise RowError("spans_disagree", f"the template marks {len(regions)} parts of this dialogue as generated, "
                                             f"and the assistant's turns are {expected}, or elsewhere")  # fmt: skip

    @cached_property
    def _marked(self) -> str | None:
        """The template with MARK around what it marks as generated; None if it marks nothing."""
        marked = GENERATION.sub(rf"{{%\1 if true %}}{{{{ '{MARK}' }}}}{{% endif \2%}}", self.source)
        return marked if marked != self.source else None

    def _one(self, start: Start, turn: Message, ended: bool = True) -> tuple[str, str | None]:
        """Prompt and one turn, and the token that ends them; an open turn ends with what was said."""
        answer: list[Message] = [{**turn, "content": start.begun + turn["content"]}]
        whole = self._text(start.asked + answer)
        body, kept, end = self._cut(start.asked, answer, whole)
        lost = not_printed(answer, whole, thoughts=True)
        # A template may leave out the last line break of the header where it goes on with </think>.
        if whole.startswith(start.joined("").rstrip()) and not lost and not start.opened_twice(answer, whole):
            text = body + kept if ended else _as_said(body, turn["content"])
        elif not turn.get("tool_calls") and not turn.get("reasoning_content"):
            # The header of the answer to generate differs from that of a given answer, or the template changes the
            # answer's thoughts: train with the header that the model will see when it generates, and the whole answer.
            text = start.joined(turn["content"]) + (kept if ended else "")
        elif lost:
            raise left_out(lost)
        else:
            raise RowError("template_error", "the template prints another header before this answer than before one to "
                                             "generate")  # fmt: skip
        if ended:
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

    def _text(self, turns: list[Message], *, answer_next: bool = False, source: str | None = None) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                [for_template(turn, self._in_parts) for turn in turns], chat_template=source or self.source,
                tokenize=False, add_generation_prompt=answer_next, **self.arguments,
            )  # fmt: skip
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"the chat template is not valid Jinja: {error}") from error
        except Exception as error:  # a template can raise any exception
            if isinstance(error, TypeError) and (changed := with_text_arguments(turns)) != turns:
                return self._text(changed, answer_next=answer_next)
            remedy = (
                "; set data.system=merge or data.system=drop for templates without system turns"
                if turns[0]["role"] == "system"
                else ""
            )
            raise RowError("template_error", f"the chat template fails on this dialogue: {error}{remedy}") from error
        return text


def renderer(
    tokenizer: Any, template: str, system: str = "keep", date: str = DataConfig.date,
    arguments: Mapping[str, Any] | None = None,
) -> Plain | Chat:  # fmt: skip
    """The renderer that `data.template` names, for this tokenizer.

    Raises:
        UserError: no such template, or one that does not read one of the arguments.
    """
    source = template_source(template, tokenizer)
    if name := unknown(arguments or (), source or ""):
        raise UserError(f"data.chat_template_kwargs has {name!r}, which the template data.template={template} does not "
                        "read: leave it out, or choose the template that reads it")  # fmt: skip
    return Plain(system) if source is None else Chat(tokenizer, on_date(source, date), system, arguments)


def _ignoring(name: str) -> str:
    return f"data.ignore=[{name if name == 'tools' else 'chat_template_kwargs'}]"


def with_system(prompt: Text, policy: str) -> Text:
    """The prompt with its system turn kept, merged into the first user turn, or dropped."""
    if policy == "keep" or isinstance(prompt, str) or prompt[0]["role"] != "system" or len(prompt) == 1:
        return prompt
    system, following, *rest = prompt
    if policy == "merge" and following["role"] == "user":
        following = {**following, "content": f"{system['content']}\n\n{following['content']}"}
    return (following, *rest)


def _as_said(body: str, said: str) -> str:
    """The text of an open answer, with the whitespace at its end that a template may strip."""
    space = said[len(said.rstrip()) :]
    return body.rstrip() + space if space else body


def _turns(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def _transcript(turns: tuple[Message, ...]) -> str:
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)
