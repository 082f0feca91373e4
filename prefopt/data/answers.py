"""Decides where an answer begins in a rendered dialogue, and whether a template printed all of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from prefopt.data.fields import blank
from prefopt.data.images.image_files import IMAGE_MARK
from prefopt.data.record import Message, RowError, Text, is_trained

THOUGHT = re.compile(r"</?think>")
EMPTY_BLOCK = re.compile(r"^\s*<think>\s*</think>\s*")
BLOCK = re.compile(r"(?P<tag><(?P<closes>/?)(?P<name>(?:think|thought|reason|analysis|scratchpad)\w*)>)(?P<space>\s*)$")


@dataclass(frozen=True)
class RenderedAnswer:
    """One completion after its prompt.

    Attributes:
        text: prompt and completion, with the token that ends the turn.
        end: this special token, if the template prints one.
        plain: whether it ends in a turn of text alone, in which the end token may occur only once.
        ended: whether the turn ends.
        spans: (start, stop) of each trained part of the text; None: all after the prompt.
    """

    text: str
    end: str | None
    plain: bool
    ended: bool = True
    spans: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class Start:
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


def beginning(prompt: tuple[Message, ...], completions: tuple[Text, ...]) -> str | None:
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


def span_of(header: str, one: str, end: str | None, text: str, special: re.Pattern[str]) -> tuple[int, int]:
    """Where an earlier turn of a completion stands in its text.

    The text may lack the empty block of thoughts that templates print in last turns only, and may end the turn with
    another token than a last turn (gpt-oss), which is then given.

    Args:
        header: the text up to this turn, as it is when the turn is to be generated.
        one: the same with the turn, where it is the last.
        end: the token that ends it there.
        text: of the whole completion.
        special: special tokens.

    Raises:
        RowError: it has another text there: the model would be trained on what it cannot say.
    """
    header = header if one.startswith(header) else header.rstrip()
    said = one[len(header) :]
    for printed in (said, EMPTY_BLOCK.sub("", said)):
        if text.startswith(printed, len(header)) and text.startswith(header):
            return len(header), len(header) + len(printed)
        content = printed.removesuffix(end or "")
        if text.startswith(header + content) and special.match(text, len(header) + len(content)):
            return len(header), len(header) + len(content)
    raise RowError(
        "turn_changed",
        "the chat template prints a turn of the assistant otherwise once others follow (without its thoughts, or after "
        "another header), so it cannot be trained there: data.train_on=last_turn trains the last turn alone, and "
        "data.template=FILE.jinja can be a template that prints all turns alike",
    )


def trained_part(said: Text) -> list[Message]:
    """The turns of a completion up to the last one that is trained."""
    turns: list[Message] = [{"role": "assistant", "content": said}] if isinstance(said, str) else list(said)
    while len(turns) > 1 and not is_trained(turns[-1]):
        turns.pop()
    return turns


def not_printed(turns: list[Message], text: str, *, thoughts: bool = False) -> str | None:
    """What a template left out of these turns; of earlier answers their thoughts may be."""
    for turn in turns:
        parts = [turn.get("reasoning_content", ""), *THOUGHT.split(turn["content"])]
        said = [piece for part in (parts if thoughts else parts[-1:]) for piece in IMAGE_MARK.split(part)[::2]]
        if not all(_printed(piece.strip(), text) for piece in said):
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


def left_out(what: str, remedy: str = "") -> RowError:
    remedy = remedy or ("; set data.system=merge" if what.endswith("system") else "")
    return RowError("turn_not_printed", f"the chat template does not print {what}, which would be lost{remedy}")
