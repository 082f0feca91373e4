"""Reports how the model to be tuned rates the data before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from prefopt.common.estimate import shares_won
from prefopt.data.doctor.findings import Finding
from prefopt.data.token_table import TokenTable
from prefopt.data.tokens import TokenRecord
from prefopt.plugin import Data

SAMPLE = 64  # records to score


class Scorer(Protocol):
    """`prefopt.engine.score` of a model: the log-probs of each record, per token too."""

    def __call__(self, records: Sequence[TokenRecord], /, *, max_tokens: int, tokens: bool) -> Sequence[Any]: ...


def base_model(score: Scorer, table: TokenTable, max_length: int) -> Iterator[Finding]:
    """Whether the model already prefers the chosen side, and whether it ends its turns as the template does."""
    spread = np.linspace(0, len(table) - 1, min(SAMPLE, len(table))).round().astype(int).tolist()
    spread = [i for i in spread if _size(table[i]) <= max_length]
    records, opened = [table[i] for i in spread], table.opened()[spread]
    if not records:
        return
    scored = score(records, max_tokens=max(4096, max_length), tokens=True)
    if table.kind is Data.PAIRS:
        wins = shares_won([float(one.sum[0] - one.sum[1]) for one in scored])
        means = [one.sum / one.num_tokens for one in scored]
        per_token = shares_won([float(mean[0] - mean[1]) for mean in means])
        error = 0.5 / np.sqrt(len(wins))
        yield Finding(
            name="base_prefers_chosen", figure=round(float(np.mean(wins)), 4),
            note=f"{len(wins)} pairs, standard error {error:.2f}; per token {np.mean(per_token):z.2f}",
        )  # fmt: skip
    tokens = [one.token for one, some in zip(scored, opened, strict=True) if not some]
    ends = np.exp([token[0][-1] for token in tokens if token is not None])
    if len(ends):
        yield Finding(name="end_of_turn", figure=round(float(np.median(ends)), 4), note=f"{len(ends)} answers")


def _size(record: TokenRecord) -> int:
    return len(record.prompt) + max(map(len, record.completions))
