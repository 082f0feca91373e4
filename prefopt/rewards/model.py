"""Scores answers with a reward model, each read at its last token: the end token of a text that ended.

Where the reward model and the policy read texts alike (the same tokenizer, chat template and image processor), it is
given the policy's own tokens. Otherwise the prompt, as the data has it, and the text are written anew with the reward
model's tokenizer and template: another tokenizer's ids would be other words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray

from prefopt.data.data_config import DataConfig
from prefopt.data.images.inputs import same_images
from prefopt.data.jinja_source import template_source, trained_template
from prefopt.data.record import Record, RowError, Text
from prefopt.data.row_facts import unknown
from prefopt.data.tokenize import Encoder, same_tokens
from prefopt.data.tokens import Ids, TokenRecord
from prefopt.engine.packing import row_tokens
from prefopt.engine.scoring import fed_tokens, score
from prefopt.errors import UserError
from prefopt.models.identity import digest_of_weights
from prefopt.models.reward_model import is_reward_model, open_reward_model, score_mean
from prefopt.plugin import Data
from prefopt.rewards.reward import Answer


@dataclass(frozen=True, kw_only=True)
class GivenPrompt:
    """A prompt as the data has it, and what the data gives the chat template beside its turns."""

    text: Text
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Writer:
    """How the answers were written that a reward model is to score.

    Attributes:
        tokenizer: the policy's.
        data: template, system text and date of its prompts.
        prompts: by their tokens, the prompts as the data has them.
    """

    tokenizer: Any
    data: DataConfig
    prompts: Callable[[], Mapping[tuple[int, ...], GivenPrompt]]


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelReward:
    """A reward that is a reward model; it is loaded at its first use.

    Attributes:
        path: the folder or hub id of a sequence classifier with one output, or of an adapter of one.
        writer: gives what is known of the answers.
        centre: subtract the mean score on the held-out records of the model's own run.

    Raises:
        UserError: there is no reward model; or `centre` without a known mean.
    """

    path: str
    writer: Callable[[], Writer]
    centre: bool = False

    def __post_init__(self) -> None:
        if not is_reward_model(self.path):
            raise UserError(f"reward={self.path} is no reward model: give the folder of a run with loss=bradley_terry "
                            "(or rm_list, pointwise), or of a sequence classifier with one output")  # fmt: skip
        if self.centre and score_mean(self.path) is None:
            raise UserError(f"reward={{centred: {self.path}}}: the mean of its scores is not known; train it with "
                            "held-out records (data.eval_records)")  # fmt: skip

    @cached_property
    def name(self) -> str:
        """The digest of its weights: a run knows it by what it is, not by where it lies."""
        return f"{'centred ' if self.centre else ''}model {digest_of_weights(self.path)}"

    @property
    def digest(self) -> str:
        """Of its weights, as `name` is."""
        return self.name

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Writer]:
        model, tokenizer = open_reward_model(self.path)
        return model.to(PartialState().device), tokenizer, self.writer()

    @cached_property
    def reads_tokens(self) -> bool:
        """Whether it reads the policy's tokens as they are."""
        _, own, writer = self._loaded
        return same_tokens(own, writer.tokenizer) and (
            template_source("auto", own) == trained_template(writer.tokenizer, writer.data)
            and same_images(own, writer.tokenizer)
        )

    @cached_property
    def _encoder(self) -> Encoder:
        _, own, writer = self._loaded
        return Encoder(own, DataConfig(path="answers", system=writer.data.system, date=writer.data.date))

    @cached_property
    def _given(self) -> Mapping[tuple[int, ...], GivenPrompt]:
        return self._loaded[2].prompts()

    def __call__(self, answers: Sequence[Answer], /) -> NDArray[np.float64]:
        """(n,) scores.

        Raises:
            UserError: answers behind prompts that are not of the data, where they must be written anew.
        """
        model = self._loaded[0]
        texts = [self._tokens(a) for a in answers]
        members: dict[bytes, list[int]] = {}  # one tree for the answers to one prompt
        for i, (prompt, _) in enumerate(texts):
            members.setdefault(prompt.tobytes(), []).append(i)
        records = [
            TokenRecord(id=str(n), kind=Data.LISTS, prompt=texts[m[0]][0], completions=tuple(texts[i][1] for i in m))
            for n, m in enumerate(members.values())
        ]
        device = next(model.parameters()).device.type
        longest = max((fed_tokens(record, "padded") for record in records), default=0)
        scored = score(model, records, max_tokens=max(row_tokens(device), longest))
        found = np.empty(len(answers))
        for m, one in zip(members.values(), scored, strict=True):
            found[m] = one.sum
        mean = score_mean(self.path) if self.centre else 0.0
        assert mean is not None, "checked when it was made"
        shifted: NDArray[np.float64] = found - mean
        return shifted

    def _tokens(self, answer: Answer) -> tuple[Ids, Ids]:
        """Prompt and completion in the reward model's tokens."""
        if self.reads_tokens:
            return np.array(answer.prompt, np.int32), np.array(answer.completion, np.int32)
        given = self._given.get(answer.prompt)
        if given is None:
            raise UserError(f"reward={self.path} has another tokenizer, chat template or image processor than the "
                            f"policy, and cannot read the prompt {answer.prompt_text[:80]!r}, which is not of the "
                            "data")  # fmt: skip
        text = self._loaded[2].tokenizer.decode(list(answer.completion), skip_special_tokens=True)
        completion: Text = text if isinstance(given.text, str) else ({"role": "assistant", "content": text},)
        arguments = self._own(given.arguments)
        record = Record(id="answer", kind=Data.DEMONSTRATIONS, prompt=given.text, completions=(completion,),
                        arguments=arguments)  # fmt: skip
        try:
            prompt, (tokens,) = self._encoder.encode(record)
        except RowError:  # an empty answer, or one that the template would change: as it was said
            prompt, tokens = self._as_said(given.text, arguments, text)
        tokens = tokens if answer.ended else tokens[:-1] or tokens
        return np.array(prompt, np.int32), np.array(tokens, np.int32)

    def _as_said(self, prompt: Text, arguments: Mapping[str, Any], text: str) -> tuple[list[int], list[int]]:
        """Prompt and answer without what the template would make of the answer."""
        tokenizer = self._encoder.tokenizer
        try:
            head = self._encoder.prompt(prompt, arguments)
        except RowError as error:
            raise UserError(f"reward={self.path} cannot read the prompt {prompt!s:.80} ({error.reason}): "
                            f"{error.detail}") from error  # fmt: skip
        return head, [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    def _own(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Of a prompt's arguments those that the reward model's template reads; tools it must print."""
        source = self._encoder.render.source or ""
        return {name: one for name, one in arguments.items() if name == "tools" or not unknown([name], source)}
