"""Scores completions of texts: `prefopt.score`, for scripts and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.data.data_config import DataConfig
from prefopt.data.record import Record, Text
from prefopt.data.tokenize import tokenize
from prefopt.engine.scoring import score as score_records
from prefopt.errors import UserError
from prefopt.plugin import Data


@dataclass(frozen=True)
class Score:
    """The log-prob of one completion: `sum` in nats over `num_tokens` tokens, the closing end-of-turn included."""

    sum: float
    num_tokens: int

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.sum / self.num_tokens


def score(
    model: Any,
    tokenizer: Any,
    texts: Sequence[tuple[Text, Text]],
    *,
    template: str = "auto",
    max_length: int = 4096,
    max_tokens: int = 4096,
) -> list[Score]:
    """Score completions behind their prompts under a transformers causal language model.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        texts: (prompt, completion); prompts as text or as chat messages (`({"role": "user", "content": "..."},)`).
        template: "auto" (the tokenizer's chat template, if it has one), "plain", or a name; see `DataConfig`.
        max_length: longest prompt plus completion, in tokens.
        max_tokens: tokens of one forward.

    Raises:
        UserError: a text is empty, or longer than `max_length`; the message names its position.
    """
    records = [
        Record(id=str(i), kind=Data.DEMONSTRATIONS, prompt=prompt, completions=(completion,), source=f"texts[{i}]")
        for i, (prompt, completion) in enumerate(texts)
    ]
    result = tokenize(records, tokenizer, DataConfig(path="texts", template=template, max_length=max_length))
    for rejection in result.rejections:
        raise UserError(f"{rejection.source}: {rejection.detail}")
    scored = score_records(model, result.records, max_tokens=max_tokens)
    return [Score(float(s.sum[0]), int(s.num_tokens[0])) for s in scored]
