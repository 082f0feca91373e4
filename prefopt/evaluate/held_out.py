"""Scores held-out records under models, and compares them: means with standard errors, and paired differences.

Names mean what they mean in training (`prefopt.train.metrics`): `logps/*` sums in nats, `logps_mean/*` per token,
`lengths/*` tokens, `margins/*` chosen less rejected, `accuracies/*` the share of pairs whose chosen side is the
likelier. A tie is half right; `ties/*` is the share of ties.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.estimate import Estimate, shares_won
from prefopt.common.files import write_lines
from prefopt.data.tokens import TokenRecord, num_trained
from prefopt.engine.reference.table import ReferenceTable
from prefopt.engine.scoring import fed_tokens
from prefopt.engine.scoring import score as score_records
from prefopt.errors import UserError
from prefopt.plugin import Data

Floats = NDArray[np.float64]
SIDES = ("chosen", "rejected")


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldOut:
    """The log-probs of R records under one model.

    Attributes:
        ids: the ids of the records.
        prompts: equal for records with equal prompts.
        sums: by side, (R,) log-probs in nats; nan where a record has no such side.
        tokens: by side, (R,) lengths, the closing end-of-turn included; nan likewise.
    """

    ids: list[str]
    prompts: list[str]
    sums: dict[str, Floats]
    tokens: dict[str, Floats]

    @property
    def paired(self) -> bool:
        """Whether some records have two sides."""
        return bool(np.isfinite(self.sums["chosen"] + self.sums["rejected"]).any())

    def columns(self) -> dict[str, Floats]:
        """All figures of each record, (R,) each; margins and accuracies only where records have two sides."""
        found = {f"logps/{side}": self.sums[side] for side in SIDES}
        found |= {f"logps_mean/{side}": self.sums[side] / self.tokens[side] for side in SIDES}
        if self.paired:
            for name in ("logps", "logps_mean"):
                margin = found[f"{name}/chosen"] - found[f"{name}/rejected"]
                found |= {f"margins/{name}": margin, **_wins(margin, name)}
        return found | {f"lengths/{side}": self.tokens[side] for side in SIDES}


def _wins(margin: Floats, name: str) -> dict[str, Floats]:
    absent = np.isnan(margin)
    return {
        f"accuracies/{name}": np.where(absent, np.nan, shares_won(margin)),
        f"ties/{name}": np.where(absent, np.nan, margin == 0),
    }


def score(model: Any, records: Sequence[TokenRecord], *, max_tokens: int = 4096, progress: Any = None) -> HeldOut:
    """Score both sides of `records` under a causal language model, without gradient.

    Args:
        model: a transformers causal language model.
        records: in tokens, at least one.
        max_tokens: tokens of one forward; a longer record gets one of its own.
        progress: called with the number of records done since the last call.

    Raises:
        UserError: there is no record.
    """
    if not len(records):
        raise UserError("there is no record to score")
    max_tokens = max(max_tokens, *(fed_tokens(records[i], "padded") for i in range(len(records))))
    scored = score_records(model, records, max_tokens=max_tokens, **({"progress": progress} if progress else {}))
    return sides(records, [one.sum for one in scored])


def of_table(records: Sequence[TokenRecord], table: ReferenceTable) -> HeldOut:
    """Both sides of `records` under the reference, from its table of log-probs."""
    return sides(records, [table.sum[a:b] for a, b in pairwise(table.offsets)])


def sides(records: Sequence[TokenRecord], sums: Sequence[Any]) -> HeldOut:
    """Both sides of each record, from the log-probs of its completions.

    The sides of a ranked list are its best and its worst completion. A single completion is the chosen side if it is
    desirable or a demonstration, else the rejected one.

    Args:
        records: in tokens.
        sums: for each record the log-probs of its completions in nats, (K,) or more.
    """
    found = {side: np.full(len(records), np.nan) for side in SIDES}
    tokens = {side: np.full(len(records), np.nan) for side in SIDES}
    ids, prompts = [], []
    for i in range(len(records)):
        record = records[i]
        ids.append(record.id)
        prompts.append(record.prompt.tobytes())
        for side, at in zip(SIDES, _places(record), strict=True):
            if at is not None:
                found[side][i], tokens[side][i] = sums[i][at], num_trained(record.completions[at])
    names = {prompt: str(i) for i, prompt in enumerate(dict.fromkeys(prompts))}
    return HeldOut(ids=ids, prompts=[names[p] for p in prompts], sums=found, tokens=tokens)


def _places(record: TokenRecord) -> tuple[int | None, int | None]:
    """The positions of the better and of the worse completion."""
    if record.kind is Data.PAIRS:
        return 0, 1
    if record.kind is Data.LISTS:
        assert record.scores is not None
        places = range(len(record.completions))
        return max(places, key=record.scores.__getitem__), min(places, key=record.scores.__getitem__)
    return (0, None) if record.kind is Data.DEMONSTRATIONS or record.desirable else (None, 0)


def figures(model: HeldOut) -> dict[str, Estimate]:
    """The means of a model's figures by name; figures without a value are left out."""
    return _estimates(model.columns(), model.prompts)


def differences(model: HeldOut, other: HeldOut) -> dict[str, Estimate]:
    """The mean differences of all figures, `model` less `other`, record by record.

    `accuracies/ratios` is the share of pairs whose margin is larger under `model`, `ties/ratios` that of ties.

    Raises:
        UserError: the records differ.
    """
    if model.ids != other.ids:
        raise UserError("the two models were scored on different records")
    a, b = model.columns(), other.columns()
    found = {name: a[name] - b[name] for name in a if not name.startswith("lengths/")}
    if "margins/logps" in found:
        found |= _wins(found["margins/logps"], "ratios")
    return _estimates(found, model.prompts)


def _estimates(columns: dict[str, Floats], groups: Sequence[str]) -> dict[str, Estimate]:
    made = {name: Estimate.of(values, groups) for name, values in columns.items()}
    return {name: estimate for name, estimate in made.items() if estimate.count}


def write_rows(path: Path, before: HeldOut, after: HeldOut) -> None:
    """Write one JSON line a record: its id, its prompt's number, and for each side `tokens`, `before` and `after`."""

    def row(i: int) -> dict[str, Any]:
        found: dict[str, Any] = {"id": before.ids[i], "prompt": before.prompts[i]}
        for side in SIDES:
            tokens, was, now = (float(x[i]) for x in (before.tokens[side], before.sums[side], after.sums[side]))
            if np.isfinite(tokens):
                found[side] = {"tokens": int(tokens), "before": was, "after": now}
        return found

    write_lines(path, map(row, range(len(before.ids))))


def read_rows(rows: Iterable[dict[str, Any]]) -> tuple[HeldOut, HeldOut]:
    """Read (before, after) back from rows that `write_rows` wrote."""
    listed = list(rows)

    def column(side: str, key: str) -> Floats:
        return np.array([row.get(side, {}).get(key, np.nan) for row in listed], dtype=np.float64)

    tokens = {side: column(side, "tokens") for side in SIDES}
    ids, prompts = [str(row["id"]) for row in listed], [str(row["prompt"]) for row in listed]
    before, after = (
        HeldOut(ids=ids, prompts=prompts, tokens=tokens, sums={side: column(side, when) for side in SIDES})
        for when in ("before", "after")
    )
    return before, after
