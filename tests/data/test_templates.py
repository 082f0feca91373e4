"""Any text under the templates of ten chat-model families: nothing lost, nothing masked, the end of the turn once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from prefopt.data import DataConfig, Record, tokenize
from prefopt.data.fields import blank
from prefopt.data.jinja_source import on_date
from prefopt.data.record import Message
from prefopt.data.tokenize import Encoder
from prefopt.errors import UserError
from prefopt.plugin import Data
from tests.data.tiny import tokenizer

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Family:
    """What a family's template prints around an answer, said independently of the template's own code."""

    end: str  # the token that ends an answer
    eos: str
    bos: str | None = None
    special: tuple[str, ...] = ()
    system: bool = True
    add_bos: bool = False
    strips: bool = False
    before: str = ""  # printed between the prompt and the answer
    after: str = ""  # printed between the answer and its end token
    extra: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "qwen": Family("<|im_end|>", "<|im_end|>"),
    "llama2": Family("</s>", "</s>", "<s>", add_bos=True, strips=True, before=" ", after=" "),
    "llama3": Family(
        "<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), add_bos=True, strips=True,
    ),
    "mistral": Family("</s>", "</s>", "<s>", add_bos=True, system=False, before=" "),
    "gemma": Family(
        "<end_of_turn>", "<eos>", "<bos>", ("<start_of_turn>", "<end_of_turn>"),
        system=False, add_bos=True, strips=True,
    ),
    "phi3": Family("<|end|>", "<|endoftext|>", special=("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")),
    "zephyr": Family("</s>", "</s>", "<s>", add_bos=True),
    "deepseek": Family(
        "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>"),
        add_bos=True,
    ),
    "command_r": Family(
        "<|END_OF_TURN_TOKEN|>", "<EOS_TOKEN>", "<BOS_TOKEN>",
        ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
        add_bos=True, strips=True,
    ),
    "olmo_tulu": Family("<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
}  # fmt: skip
ODD = {
    "thinking": Family("<eos>", "<eos>", "<bos>", ("<｜User｜>", "<｜Assistant｜>"), system=False),
    "unclosed": Family("</s>", "</s>", "<s>", add_bos=True),
}


@cache
def family_tokenizer(name: str) -> Any:
    family = (FAMILIES | ODD)[name]
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer(source, special=family.special, bos=family.bos, eos=family.eos, add_bos=family.add_bos)


def header(name: str, turns: tuple[Message, ...]) -> str:
    """The prompt as the template prints it, by Jinja alone."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    family = (FAMILIES | ODD)[name]
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(
        (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        messages=turns, add_generation_prompt=True, bos_token=family.bos, eos_token=family.eos, raise_exception=refuse
    )


def decode(name: str, ids: Any) -> str:
    return str(family_tokenizer(name).decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def size(made: Any, ids: Any) -> int:
    """Bytes that tokens stand for: a byte-level token has one character a byte, a special one is its own text."""
    special = set(made.all_special_tokens)
    return sum(len(t.encode()) if t in special else len(t) for t in made.convert_ids_to_tokens(ids))


TEXT = st.text(min_size=1, max_size=40) | st.sampled_from(
    [" Paris", "\nParis", "a\u0301", "日本", "🤷🏽‍♀️", "x\r\n", "a\x00b"]
)
TURNS = st.tuples(TEXT, st.lists(st.tuples(TEXT, TEXT), max_size=2), st.none() | TEXT)


@pytest.mark.parametrize("name", [*FAMILIES, *ODD])
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(turns=TURNS, chosen=TEXT, rejected=TEXT)
def test_any_text(name: str, turns: Any, chosen: str, rejected: str) -> None:
    family, made = (FAMILIES | ODD)[name], family_tokenizer(name)
    question, earlier, system = turns
    said: list[Message] = [
        {"role": role, "content": text}
        for pair in earlier
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    if system is not None and family.system:
        said.insert(0, {"role": "system", "content": system})
    prompt = (*said, Message(role="user", content=question))
    texts = [chosen, rejected, *(turn["content"] for turn in prompt)]
    assume(not any(token in text for token in made.all_special_tokens for text in texts))
    assume(not any(blank(text) for text in texts))
    assume(chosen.strip() != rejected.strip())
    if name == "thinking":  # its header opens <think>: an answer that does not close it is rejected, see below
        chosen, rejected = (f"Why.\n</think>\n\n{answer}" for answer in (chosen, rejected))

    record = Record(id="x", kind=Data.PAIRS, prompt=prompt, completions=(chosen, rejected))
    shared, completions = Encoder(made, DataConfig(path="x")).encode(record)

    head = header(name, prompt)
    if family.add_bos and not head.startswith(str(family.bos)):
        head = f"{family.bos}{head}"
    end = made.convert_tokens_to_ids(family.end)
    for answer, ids in zip((chosen, rejected), completions, strict=True):
        body = family.before + (answer.strip() if family.strips else answer) + family.after
        # the text is the prompt, the answer, its end, and nothing else
        assert decode(name, shared + ids) == head + body + family.end
        # the tree reproduces the tokens of each whole text
        assert shared + ids == made(head + body, add_special_tokens=False)["input_ids"] + [end]
        # the end of the turn is there, once, last
        assert ids[-1] == end
        assert not {end, made.eos_token_id} & set(ids[:-1])
    # the prompt's tokens end where the answer begins, unless a token of one answer spans that border
    reached = size(made, shared)
    assert reached <= len(head.encode())
    assert reached == len(head.encode()) or any(
        size(made, shared + ids[:1]) > len(head.encode()) for ids in completions
    )
    if family.bos:
        assert shared[0] == made.bos_token_id
        assert shared[1:2] != [made.bos_token_id]


def test_a_template_that_raises_gives_a_counted_rejection() -> None:
    system: Message = {"role": "system", "content": "Be brief."}
    record = Record(
        id="x", kind=Data.PAIRS, prompt=(system, Message(role="user", content="Hi")), completions=("a", "b")
    )
    result = tokenize([record], family_tokenizer("gemma"), DataConfig(path="x"))
    assert [(r.id, r.reason) for r in result.rejections] == [("x", "template_error")]
    assert "no system turn" in result.rejections[0].detail
    assert "data.system=merge" in result.rejections[0].detail
    assert result.counts["rejected/template_error"] == 1


@pytest.mark.parametrize(("policy", "asked"), [("merge", "Be brief.\n\nHi"), ("drop", "Hi")])
def test_system_turns_for_templates_without_them(policy: str, asked: str) -> None:
    prompt = (Message(role="system", content="Be brief."), Message(role="user", content="Hi"))
    record = Record(id="x", kind=Data.PAIRS, prompt=prompt, completions=("a", "b"))
    made = family_tokenizer("gemma")
    (row,) = tokenize([record], made, DataConfig(path="x", system=policy)).records
    assert made.decode(row.prompt) == f"<bos><start_of_turn>user\n{asked}<end_of_turn>\n<start_of_turn>model\n"


def test_an_end_token_in_the_text_is_a_counted_rejection() -> None:
    record = Record(id="x", kind=Data.PAIRS, prompt="Hi", completions=("a<|im_end|>b", "c"))
    result = tokenize([record], family_tokenizer("qwen"), DataConfig(path="x"))
    assert [r.reason for r in result.rejections] == ["end_token_inside"]


def test_sides_that_a_template_makes_equal_are_rejected() -> None:
    record = Record(id="x", kind=Data.PAIRS, prompt="Hi", completions=("same", " same\n"))
    result = tokenize([record], family_tokenizer("llama3"), DataConfig(path="x"))
    assert [r.reason for r in result.rejections] == ["identical_tokens"]


def test_plain_text_is_joined_as_it_is() -> None:
    made = tokenizer(bos="<s>", add_bos=True)
    record = Record(id="x", kind=Data.PAIRS, prompt="2 + 2 =", completions=(" 4", " 5"))
    (row,) = tokenize([record], made, DataConfig(path="x")).records
    assert made.decode(row.prompt) == "<s>2 + 2 ="
    assert [made.decode(ids) for ids in row.completions] == [" 4</s>", " 5</s>"]


def test_text_that_brings_its_own_bos_and_eos_gets_no_second() -> None:
    made = tokenizer(bos="<s>", add_bos=True)
    record = Record(id="x", kind=Data.DEMONSTRATIONS, prompt="<s>2 + 2 =", completions=(" 4</s>",))
    (row,) = tokenize([record], made, DataConfig(path="x")).records
    assert made.decode([*row.prompt, *row.completions[0]]) == "<s>2 + 2 = 4</s>"


def test_a_tokenizer_without_eos_is_an_error() -> None:
    with pytest.raises(UserError, match="no end token"):
        tokenize([], tokenizer(eos=None), DataConfig(path="x"))


@pytest.mark.parametrize("name", ["chatml", "alpaca", "zephyr"])
def test_named_templates(name: str) -> None:
    record = Record(id="x", kind=Data.DEMONSTRATIONS, prompt="Hi", completions=("Hello",))
    made = tokenizer()
    (row,) = tokenize([record], made, DataConfig(path="x", template=name)).records
    assert made.decode(row.completions[0]) in ("Hello</s>", "Hello<|im_end|>")


CLOCKED = (
    "   {%- if strftime_now is defined %}{%- set today = strftime_now('%d %b %Y, %Y-%m-%d, %-d') %}{%- endif %}\n"
    "Today is {{ today }}.\n{%- for m in messages %}\n<{{ m.role }}>{{ m.content }}<|im_end|>{%- endfor %}"
)


def test_a_template_with_a_clock_always_writes_the_date_of_the_data(tmp_path: Path) -> None:
    """Whatever the day, and nothing else of the text is different."""
    file = tmp_path / "clock.jinja"
    file.write_text(CLOCKED)
    made = tokenizer()
    turns = [{"role": "user", "content": "Hi"}]
    for date, written in (("2024-07-26", "26 Jul 2024, 2024-07-26, 26"), ("2031-01-02", "02 Jan 2031, 2031-01-02, 2")):
        (row,) = tokenize(
            [Record(id="x", kind=Data.DEMONSTRATIONS, prompt="Hi", completions=("Ho",))],
            made, DataConfig(path="x", template=str(file), date=date),
        ).records  # fmt: skip
        today = str(made.apply_chat_template(turns, chat_template=CLOCKED, tokenize=False))
        assert written not in today
        start = re.sub(r"(?<=Today is ).*?(?=\.)", written, today)
        assert str(made.decode([*row.prompt, *row.completions[0]])).startswith(start)
    assert on_date("{{ messages }}", "2024-07-26") == "{{ messages }}"
    with pytest.raises(UserError, match=r"data\.date=today is not a date such as 2024-07-26"):
        DataConfig(path="x", date="today").check()


def test_unknown_template() -> None:
    with pytest.raises(UserError, match="chatml"):
        tokenize([], tokenizer(), DataConfig(path="x", template="chatty"))


def chat(*, call_end: str = "<|im_end|>", answer_start: str = "", header: str = "", loop: str = "m in messages") -> str:
    """A template of the usual form that prints tool calls."""
    return f"""
{{%- for {loop} %}}{{{{ '<|im_start|>' + m.role + '\n' }}}}
{{%- if m.tool_calls %}}{{{{ m.content }}}}{{% for c in m.tool_calls %}}{{{{ '<|call|>' + c.function.name }}}}
{{{{- ' ' + (c.function.arguments | tojson) }}}}{{% endfor %}}{{{{ '{call_end}' }}}}
{{%- else %}}{{{{ ('{answer_start}' if m.role == 'assistant' else '') + m.content + '<|im_end|>\n' }}}}{{% endif %}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n{header}' }}}}{{% endif %}}"""


TOOLS = chat()


def called(arguments: Any) -> Message:
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def a_pair(chosen: Any, rejected: Any = "Six.", prompt: Any = "What is 0+3?") -> Record:
    return Record(id="x", kind=Data.PAIRS, prompt=prompt, completions=(chosen, rejected))


def texts(made: Any, record: Record, **settings: Any) -> list[str]:
    """Prompt and completions as text."""
    prompt, completions = Encoder(made, DataConfig(path="x", **settings)).encode(record)
    return [str(made.decode(ids, clean_up_tokenization_spaces=False)) for ids in (prompt, *completions)]


def reasons(made: Any, record: Record, **settings: Any) -> list[str]:
    return [r.reason for r in tokenize([record], made, DataConfig(path="x", **settings)).rejections]


def test_a_record_is_rendered_the_same_whatever_came_before_it() -> None:
    made = tokenizer(TOOLS, special=("<|call|>",), eos="<|im_end|>")
    with_tools, plain = a_pair((called({"a": 0, "b": 3}),)), a_pair("Three.")
    expected = ['<|call|>add {"a": 0, "b": 3}<|im_end|>', "Six.<|im_end|>"]
    for order in ([with_tools], [plain, with_tools], [with_tools] * 6 + [plain, with_tools]):
        encoder = Encoder(made, DataConfig(path="x"))
        for record in order:
            _, completions = encoder.encode(record)
            assert made.decode(completions[1]) == "Six.<|im_end|>"
        assert [made.decode(ids) for ids in completions] == expected


def test_a_tool_call_may_end_in_another_way_than_an_answer() -> None:
    made = tokenizer(chat(call_end="<|made|>"), special=("<|call|>", "<|made|>"), eos="<|im_end|>")
    _, chosen, rejected = texts(made, a_pair((called({"a": 1}),)))
    assert (chosen, rejected) == ('<|call|>add {"a": 1}<|made|>', "Six.<|im_end|>")


def test_what_a_template_does_not_print_is_a_counted_rejection() -> None:
    chatml = tokenizer((TEMPLATES / "qwen.jinja").read_text(encoding="utf-8"), eos="<|im_end|>")
    assert reasons(chatml, a_pair((called({"a": 1}),))) == ["turn_not_printed"]
    said: Message = {"role": "user", "content": "Hi"}
    assert reasons(chatml, a_pair("Hm.", prompt=(said, called({"a": 1}), said))) == ["turn_not_printed"]
    silent = chat(loop="m in messages if m.role != 'system'")
    system: Message = {"role": "system", "content": "You are a pirate."}
    record = a_pair("Arr.", prompt=(system, said))
    made = tokenizer(silent, eos="<|im_end|>")
    (rejection,) = tokenize([record], made, DataConfig(path="x")).rejections
    assert (rejection.reason, "data.system=merge" in rejection.detail) == ("turn_not_printed", True)
    assert "pirate" in texts(made, record, system="merge")[0]


def test_templates_that_join_arguments_to_text_get_them_as_text() -> None:
    joining = TOOLS.replace("(c.function.arguments | tojson)", "c.function.arguments")
    made = tokenizer(joining, special=("<|call|>",), eos="<|im_end|>")
    assert texts(made, a_pair((called({"a": "é"}),)))[1] == '<|call|>add {"a": "é"}<|im_end|>'


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("<think>\ntwo\n</think>\n\nFive.", "two\n</think>\n\nFive.<eos>"),
        ("<think>two</think>Five.", "two</think>Five.<eos>"),
        ("two\n</think>\n\nFive.", "two\n</think>\n\nFive.<eos>"),
        ("Five.", "unclosed_block"),
        ("<think>Five.", "unclosed_block"),
    ],
)
def test_a_block_that_the_header_opens_is_opened_once_and_closed(answer: str, expected: str) -> None:
    record = a_pair(answer, "six</think>Six.")
    if expected == "unclosed_block":
        assert reasons(family_tokenizer("thinking"), record) == [expected]
        return
    prompt, chosen, _ = texts(family_tokenizer("thinking"), record)
    assert (prompt.endswith("<｜Assistant｜><think>\n"), chosen) == (True, expected)


EMPTY = "<think></think>"


@pytest.mark.parametrize(
    ("source", "answer", "expected"),
    [
        # the template closes the block itself, on the line of the header or on the next
        (chat(answer_start=EMPTY, header="<think>\n"), "Five.", "</think>Five."),
        (chat(answer_start="<think>\n</think>", header="<think>\n"), "Five.", "</think>Five."),
        # it prints an empty block before an answer that has its own
        (chat(answer_start=EMPTY, header="<think>\n"), "<think>two</think>Five.", "two</think>Five."),
        (chat(answer_start=EMPTY), "<think>two</think>Five.", "<think>two</think>Five."),
        (chat(answer_start=EMPTY), "Five.", "<think></think>Five."),
        # its header has a tag of another kind
        (chat(header="<assistant>"), "Five.", "Five."),
        # its header has an empty block
        (chat(answer_start=EMPTY, header=EMPTY), "Five.", "Five."),
        (chat(answer_start=EMPTY, header=EMPTY), "<think>two</think>Five.", "second_block"),
    ],
)
def test_blocks_that_a_template_prints_itself(source: str, answer: str, expected: str) -> None:
    made = tokenizer(source, special=("<|call|>",), eos="<|im_end|>")
    record = a_pair(answer, "<think>six</think>Six." if "two" in answer else "Six.")
    if expected == "second_block":
        assert reasons(made, record) == [expected]
    else:
        assert texts(made, record)[1] == expected + "<|im_end|>"


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_that_the_prompt_begins_is_continued(name: str) -> None:
    family, made = FAMILIES[name], family_tokenizer(name)
    asked: tuple[Message, ...] = ({"role": "user", "content": "Where?"},)
    prompt: Any = (*asked, {"role": "assistant", "content": "The capital is"})
    head, *answers = texts(made, a_pair(" Paris.", " Rome.", prompt=prompt))
    expected = header(name, asked) + family.before + "The capital is"
    if family.add_bos and not expected.startswith(str(family.bos)):
        expected = f"{family.bos}{expected}"
    for answer, said in zip(answers, (" Paris.", " Rome."), strict=True):
        assert head + answer == expected + said + family.after + family.end
    assert Encoder(made, DataConfig(path="x")).prompt(prompt) == made(expected, add_special_tokens=False)["input_ids"]


def test_beginnings_of_answers() -> None:
    asked: Message = {"role": "user", "content": "Where?"}
    begun: Any = (asked, {"role": "assistant", "content": "The capital is"})
    repeated = a_pair("The capital is Paris.", "The capital is Rome.", prompt=begun)
    assert reasons(family_tokenizer("qwen"), repeated) == ["repeated_prefill"]
    assert texts(tokenizer(), a_pair(" Paris.", prompt=begun)) == [
        "User: Where?\n\nAssistant: The capital is", " Paris.</s>", "Six.</s>",
    ]  # fmt: skip
    empty: Any = (asked, {"role": "assistant", "content": " "})
    for made in (family_tokenizer("qwen"), tokenizer()):
        assert texts(made, a_pair("Paris.", prompt=empty)) == texts(made, a_pair("Paris.", prompt=(asked,)))
    thinks: Any = (asked, {"role": "assistant", "content": "<think>\nHm"})
    record = a_pair(", two.</think>Five.", "</think>Six.", prompt=thinks)
    head, chosen, _ = texts(family_tokenizer("thinking"), record)
    assert (head + chosen).endswith("<｜Assistant｜><think>\nHm, two.</think>Five.<eos>")
