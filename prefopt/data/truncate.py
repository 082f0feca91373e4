"""Shortens chat prompts by whole exchanges, because a turn cut in the middle breaks the template."""

from __future__ import annotations

from collections.abc import Iterator

from prefopt.data.record import Message, Text


def shorter_prompts(prompt: Text, policy: str) -> Iterator[Text]:
    """The dialogue with one, two, ... of its earlier exchanges left out; the system turn and the last turn stay.

    `keep_end` leaves out the oldest first, `keep_start` the most recent first.
    """
    if isinstance(prompt, str):
        return
    system = tuple(turn for turn in prompt[:1] if turn["role"] == "system")
    exchanges = _exchanges(prompt[len(system) :])
    *earlier, last = exchanges
    for dropped in range(1, len(earlier) + 1):
        kept = earlier[dropped:] if policy == "keep_end" else earlier[: len(earlier) - dropped]
        yield (*system, *(turn for exchange in kept for turn in exchange), *last)


def _exchanges(turns: tuple[Message, ...]) -> list[tuple[Message, ...]]:
    """The dialogue cut before each user turn."""
    starts = [i for i, turn in enumerate(turns) if turn["role"] == "user" and i > 0]
    return [turns[a:b] for a, b in zip([0, *starts], [*starts, len(turns)], strict=True)]
