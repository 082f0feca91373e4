"""A signal ends a run at the next safe place, with all that a resume needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.test_kills import module


@pytest.mark.slow
def test_a_signal_stops_the_run_with_a_checkpoint_and_the_next_goes_on_bit_for_bit(tmp_path: Path) -> None:
    stops = {stop["place"]: stop for stop in module("tests.train.signalled", tmp_path)}
    for place, stop in stops.items():
        assert stop["different"] == [], stop
        assert stop["again"] == 0
        if place != "second":
            assert stop["code"] == 75, stop
            assert f"stopped by {stop['signal']}" in stop["said"]
    assert {place: stop["resumed"] for place, stop in stops.items()} == {
        "reference": "start",
        "evaluation before": "start",
        "step": "checkpoint-6",
        "save": "checkpoint-7",  # the step after the save
        "evaluation": "checkpoint-4",  # cut, and made again
        "end": "checkpoint-8",
        "second": "checkpoint-3",  # left at once, with what had been saved
    }
    assert "Ctrl-C again leaves at once" in stops["save"]["said"]
    assert stops["second"]["code"] == -2
