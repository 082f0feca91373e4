"""What of a completion is trained: exactly the assistant's turns, under the ten most used chat templates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from prefopt.data import DataConfig, Record, tokenize
from prefopt.data.fields import blank
from prefopt.data.record import Message
from prefopt.data.tokenize import Encoder
from prefopt.data.tokens import token_ids
from prefopt.plugin import Data
from tests.data.tiny import tokenizer

TEMPLATES = Path(__file__).parent / "templates"
HI: Message = {"role": "user", "content": "Hi"}
SYSTEM: Message = {"role": "system", "content": "Be kind."}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL: Message = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "callcall1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}},
]}  # fmt: skip
RESULT: Message = {"role": "tool", "content": "3", "name": "add", "tool_call_id": "callcall1"}


def says(content: str, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


@dataclass(frozen=True)
class Family:
    """A template, and what it makes of the answers below, said independently of its code.

    Attributes:
        end: the token that ends an answer.
        plain: before and after the text of an answer to generate, its end not included.
        call: the trained text of CALL; None: the template knows no tools.
        system: whether it accepts a system turn.
        earlier: the end of an answer that others follow.
        special: its marks, which are tokens of their own.
    """

    end: str
    call: str | None
    special: tuple[str, ...] = ()
    plain: tuple[str, str] = ("", "")
    system: bool = True
    earlier: str | None = None
    bos: str | None = None
    add_bos: bool = False


HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHANNELS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>")
QWEN_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
FAMILIES = {
    "chatml_tools": Family("<|im_end|>", QWEN_CALL),
    "llama2": Family("</s>", None, plain=(" ", " "), bos="<s>"),
    "llama3_date": Family(
        "<|eot_id|>", '{"name": "add", "parameters": {"a": 1}}<|eot_id|>', HEADERS, bos="<|begin_of_text|>"
    ),
    "mistral_tools": Family(
        "</s>", '[TOOL_CALLS]{"name": "add", "arguments": {"a": 1}}</s>', ("[INST]", "[/INST]", "[TOOL_CALLS]"),
        bos="<s>",
    ),
    "gemma": Family("<end_of_turn>", None, ("<start_of_turn>", "<end_of_turn>"), system=False, bos="<bos>"),
    "qwen3": Family("<|im_end|>", QWEN_CALL),
    "phi3": Family("<|end|>", None, ("<|end|>", "<|user|>", "<|assistant|>")),
    "deepseek_r1": Family(
        "<｜end▁of▁sentence｜>", None, ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        bos="<｜begin▁of▁sentence｜>",
    ),
    "gpt_oss": Family(
        "<|return|>", ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>', CHANNELS,
        plain=("<|channel|>final<|message|>", ""), earlier="",
    ),
    "smollm3": Family("<|im_end|>", '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|im_end|>'),
}  # fmt: skip
ENDLESS = {"deepseek_r1"}  # it begins answers with thoughts, and takes them out of earlier ones


@cache
def made(name: str) -> Any:
    family = FAMILIES[name]
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer(source, special=family.special, bos=family.bos, eos="</s>", add_bos=False)


def text(tk: Any, ids: Any) -> str:
    return str(tk.decode([int(t) for t in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def parts(tk: Any, completion: Any) -> list[tuple[bool, str]]:
    """(whether it is trained, its text) of each span."""
    spans = groupby(completion, lambda token: token >= 0)
    return [(is_trained, text(tk, token_ids(np.array(list(span))))) for is_trained, span in spans]


def encoded(tk: Any, prompt: Any, *completions: Any, **settings: Any) -> tuple[str, list[list[tuple[bool, str]]]]:
    ended, arguments = settings.pop("ended", None), settings.pop("arguments", {})
    kind = Data.PAIRS if len(completions) == 2 else Data.DEMONSTRATIONS
    record = Record(id="x", kind=kind, prompt=prompt, completions=completions, ended=ended, arguments=arguments)
    head, found = Encoder(tk, DataConfig(path="x", **settings)).encode(record)
    return text(tk, head), [parts(tk, ids) for ids in found]


class WithoutOffsets(Encoder):
    """As for a tokenizer that does not know the places of its tokens."""

    def _coded(self, texts: list[str], *, offsets: bool = False) -> Any:
        return super()._coded(texts)


def trained(spans: list[tuple[bool, str]]) -> list[str]:
    return [said for is_trained, said in spans if is_trained]


def reason(tk: Any, prompt: Any, *completions: Any, **settings: Any) -> str:
    kind = Data.PAIRS if len(completions) == 2 else Data.DEMONSTRATIONS
    record = Record(id="x", kind=kind, prompt=prompt, completions=completions)
    return "+".join(r.reason for r in tokenize([record], tk, DataConfig(path="x", **settings)).rejections)


def whole(name: str, turns: list[Message], **arguments: Any) -> str:
    """What the template prints, as transformers runs it."""
    source = Encoder(made(name), DataConfig(path="x")).render.source  # with the date of the data
    return str(made(name).apply_chat_template(turns, chat_template=source, tokenize=False, **arguments))


@pytest.mark.parametrize("with_system", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_turn_of_the_assistant_and_nothing_else(name: str, with_system: bool) -> None:
    family, tk = FAMILIES[name], made(name)
    if with_system and not family.system:
        return
    prompt = (SYSTEM, HI) if with_system else (HI,)
    dialogue = (says("Hello."), Message(role="user", content="And?"), says("Fine."))
    if name in ENDLESS:
        thought = tuple(says(f"ok\n</think>\n\n{t['content']}") if t["role"] == "assistant" else t for t in dialogue)
        assert reason(tk, prompt, thought) == "turn_changed"
        dialogue = (*(dict(thought[0], train=False), *thought[1:]),)  # type: ignore[assignment]
    head, (spans,) = encoded(tk, prompt, dialogue)
    before, after = family.plain
    earlier = family.end if family.earlier is None else family.earlier
    if name in ENDLESS:
        assert trained(spans) == [f"ok\n</think>\n\nFine.{family.end}"]
        return
    last = "<think>\n\n</think>\n\nFine." if name == "qwen3" else "Fine."
    assert trained(spans) == [f"{before}Hello.{after}{earlier}", f"{before}{last}{after}{family.end}"]
    assert "And?" in "".join(said for is_trained, said in spans if not is_trained)
    printed = whole(name, [*prompt, *dialogue])
    assert printed.startswith(head + "".join(said for _, said in spans))
    assert not printed.removeprefix(head + "".join(said for _, said in spans)).strip().removesuffix("</s>")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trajectory_with_a_tool(name: str) -> None:
    family, tk = FAMILIES[name], made(name)
    steps, given = (CALL, RESULT, says("Three.")), {"tools": [ADD]}
    if family.call is None:
        assert reason(tk, (HI,), steps) != "", "the template has no place for calls"
        return
    head, (good, bad) = encoded(tk, (HI,), steps, "Four.", arguments=given)
    before, after = family.plain
    last = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    assert trained(good) == [family.call, f"{before}{last}Three.{after}{family.end}"]
    assert trained(bad) == [f"{before}{last}Four.{after}{family.end}"]
    assert "add" in head
    assert whole(name, [HI, *steps], tools=[ADD]).startswith(head + "".join(said for _, said in good))


@pytest.mark.parametrize(
    ("name", "off"),
    [("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
     ("smollm3", "<|im_start|>assistant\n<think>\n\n</think>\n")],
)  # fmt: skip
def test_thinking_on_and_off(name: str, off: str) -> None:
    tk, thought = made(name), "<think>\nWhy?\n</think>\n\nFine."
    for arguments, start, answers in (({}, "<|im_start|>assistant\n", [f"{thought}<|im_end|>"]),
                                      ({"enable_thinking": False}, off, ["Fine.<|im_end|>"])):  # fmt: skip
        head, (spans,) = encoded(tk, (HI,), "Fine." if arguments else thought, arguments=arguments)
        assert head.endswith(start)
        assert trained(spans) == answers
    apart = (says("Fine.", reasoning_content="Why?"),)
    if name == "smollm3":  # it does not print thoughts that stand apart
        assert reason(tk, (HI,), apart) == "turn_not_printed"
    else:
        assert trained(encoded(tk, (HI,), apart)[1][0]) == [f"{thought}<|im_end|>"]


def test_thoughts_that_a_template_takes_out_of_earlier_turns() -> None:
    """Trained where they stay; else the row is rejected, or its last turn alone is trained."""
    tk, asked = made("qwen3"), Message(role="user", content="And?")
    thoughts = [says(f"<think>\n{word}\n</think>\n\n{word}!") for word in ("One", "Two")]
    assert reason(tk, (HI,), (thoughts[0], asked, thoughts[1])) == "turn_changed"
    given = {**thoughts[0], "train": False}
    _, (spans,) = encoded(tk, (HI,), (given, asked, thoughts[1]))
    assert spans[0] == (False, "One!<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n")
    assert trained(spans) == ["<think>\nTwo\n</think>\n\nTwo!<|im_end|>"]
    _, (spans,) = encoded(tk, (HI,), ({**CALL, "reasoning_content": "One"}, RESULT, thoughts[1]))
    assert trained(spans)[0] == f"<think>\nOne\n</think>\n\n{QWEN_CALL}", "no turn of the user follows: they stay"


@pytest.mark.parametrize("name", FAMILIES)
def test_prefill_and_open_completions(name: str) -> None:
    family, tk = FAMILIES[name], made(name)
    _, after = family.plain
    begun = "<think>\nok\n</think>\n\nThe capital" if name in ENDLESS else "The capital"
    head, (spans, opened) = encoded(tk, (HI, says(begun)), " is Paris.", " is\n", ended=(True, False))
    assert head.endswith("The capital")
    assert trained(spans) == [f" is Paris.{after}{family.end}"]
    assert trained(opened) == [" is\n"]
    _, (alone,) = encoded(tk, (HI,), "ok</think>Step 1.\n" if name in ENDLESS else "Step 1.\n", ended=(False,))
    assert trained(alone)[0].endswith("Step 1.\n")
    assert family.end not in trained(alone)[0]


def test_pairs_share_what_comes_before_they_part() -> None:
    tk = made("chatml_tools")
    other = {**CALL, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]}
    head, (good, bad) = encoded(tk, (HI,), (CALL, RESULT, says("3")), (other, RESULT, says("3")))
    assert head.endswith("assistant\n")
    assert [is_trained for is_trained, _ in good] == [True, False, True]
    assert trained(good)[1] == trained(bad)[1] == "3<|im_end|>"


def test_plain_text_has_spans_too() -> None:
    tk = tokenizer()
    dialogue = (says("Hello."), Message(role="user", content="And?"), says("Fine."))
    head, (spans,) = encoded(tk, (HI,), dialogue)
    assert head == "User: Hi\n\nAssistant:"
    assert spans == [(True, " Hello."), (False, "\n\nUser: And?\n\nAssistant:"), (True, " Fine.</s>")]
    assert reason(tk, (HI,), (CALL, RESULT, says("3"))) == "turn_not_printed"


def test_marks_of_the_template_that_disagree_reject_the_row() -> None:
    """The template marks only the last answer as generated."""
    source = (TEMPLATES / "smollm3.jinja").read_text()
    marks = "{%- if loop.last %}{%- generation %}{{- '' }}{%- endgeneration %}{% endif %}"
    wrong = tokenizer(source.replace("{%- generation %}", marks).replace("        {%- endgeneration %}\n", ""))
    dialogue = (says("Hello."), Message(role="user", content="And?"), says("Fine."))
    assert reason(wrong, (HI,), dialogue) == "spans_disagree"
    assert reason(made("smollm3"), (HI,), dialogue) == ""


TEXT = st.text(min_size=1, max_size=12) | st.sampled_from(
    [" Paris", "\nParis", "日本", "x\r\n", "a\x00b", ".", ".\n\n"]
)


@pytest.mark.parametrize(
    "name", ["chatml_tools", "llama2", "llama3_date", "gemma", "phi3", "gpt_oss", "smollm3", "plain"]
)
@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
@given(said=st.lists(TEXT, min_size=3, max_size=5), first=TEXT)
def test_any_dialogue(name: str, said: list[str], first: str) -> None:
    """Decoding gives the text; the trained parts are what the assistant said, each with the end of its turn, once."""
    tk = tokenizer() if name == "plain" else made(name)
    assume(not any(blank(one) or token in one for one in (first, *said) for token in tk.all_special_tokens))
    said = said[: len(said) - 1 + len(said) % 2]
    turns = [Message(role="user" if i % 2 else "assistant", content=one) for i, one in enumerate(said)]
    head, (spans,) = encoded(tk, (Message(role="user", content=first),), tuple(turns))
    record = Record(id="x", kind=Data.DEMONSTRATIONS, prompt=(Message(role="user", content=first),),
                    completions=(tuple(turns),))  # fmt: skip
    config = DataConfig(path="x")
    assert WithoutOffsets(tk, config).encode(record) == Encoder(tk, config).encode(record)
    strip = name in ("llama2", "llama3_date", "gemma")
    family = FAMILIES.get(name)
    (before, after), end = (family.plain, family.end) if family else ((" ", ""), "</s>")
    earlier = (family.end if family.earlier is None else family.earlier) if family else ""
    answers = [(one.strip() if strip else one.lstrip("\n") if name == "smollm3" else one) for one in said[::2]]
    expected = [f"{before}{one}{after}{earlier}" for one in answers[:-1]] + [f"{before}{answers[-1]}{after}{end}"]
    got = trained(spans)
    if name == "plain":  # a token may span the border of a turn, and is trained then
        assert [g.startswith(e) for g, e in zip(got, expected, strict=True)] == [True] * len(got)
    else:
        assert got == expected
        assert all(one.count(end) <= 1 for one in got)
        printed = whole(name, [Message(role="user", content=first), *turns])
        assert printed.startswith(head + "".join(part for _, part in spans))
