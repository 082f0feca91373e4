"""A form of data and a reward, an example of both in another package."""

from __future__ import annotations

from collections.abc import Sequence

from prefopt.data.fields import string
from prefopt.data.make import unpaired
from prefopt.data.record import RowError
from prefopt.data.rows import Row
from prefopt.data.schemas.base import Made, Schema, has


def read(row: Row) -> list[Made]:
    """A record of `{"question": ..., "reply": ..., "thumb": "up" or "down"}`."""
    if row["thumb"] not in ("up", "down"):
        raise RowError("bad_label", f"thumb is up or down, not {row['thumb']!r}")
    return [unpaired(string(row["question"], "question"), string(row["reply"], "reply"), row["thumb"] == "up")]


THUMBS = Schema(
    name="thumbs",
    columns="question, reply, thumb (up or down)",
    matches=lambda row: has(row, "question", "reply", "thumb"),
    read=read,
)


def brevity(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """The shorter the better: minus a hundredth of a character each."""
    return [-len(text) / 100 for text in completions]
