"""Prompts that are nearly the same."""

from __future__ import annotations

import random

from prefopt.data.doctor.near_duplicates import near_copies


def test_near_copies_have_one_name() -> None:
    """Long texts by their word triples, short ones by their words; a template that all share makes nothing alike."""
    draw = random.Random(0)
    one, other, template = (" ".join(f"w{draw.randrange(500)}" for _ in range(n)) for n in (40, 40, 200))
    texts = [one, other, f"{one} please", "Hi there", "hi  there", "Hi you"]
    for asked in (texts, [f"{template} {text}\nAnswer:" for text in texts]):
        names = near_copies(asked)
        assert [names.index(name) for name in names] == [0, 1, 0, 3, 3, 5]
    assert near_copies([]) == []
    assert len(set(near_copies(["Hi there"] * 3))) == 1
