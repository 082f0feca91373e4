"""How a run shows its progress: plain lines, JSON lines, a live bar, or warnings only."""

from __future__ import annotations

import io
import json
import re
import time

import pytest

from prefopt.errors import UserError
from prefopt.runs.progress import (
    JsonProgress,
    PlainProgress,
    RichProgress,
    RunProgress,
    clock,
    in_words,
    run_progress,
)

FIGURES = {"loss": 0.6931, "rewards/accuracies": 0.625, "rewards/margins": 0.012, "ratios/chosen": -0.1,
           "ratios/rejected": -0.25, "tokens_per_second": 12345.6, "memory_gib": 1.5}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_modes_by_name() -> None:
    assert type(run_progress("auto", "dpo", io.StringIO())) is PlainProgress
    assert type(run_progress("auto", "dpo", Terminal())) is RichProgress
    assert type(run_progress("json", "dpo", Terminal())) is JsonProgress
    assert type(run_progress("quiet", "dpo", Terminal())) is RunProgress
    with pytest.raises(UserError, match="not one of auto, rich"):
        run_progress("loud", "dpo")


def test_the_bar_shows_the_figures_and_leaves_the_terminal_as_it_was() -> None:
    terminal = Terminal()
    told = run_progress("rich", "dpo", terminal)
    told.begin(0, 10)
    told.step(5, 10)
    told.log(5, 10, FIGURES)
    told.print("warning: look out [not markup]")
    told.close()
    told.close()
    said = terminal.getvalue()
    assert "log-ratio chosen -0.10 rejected -0.25" in " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said).split())
    assert "5/10" in said
    assert "[not markup]" in said
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again


def test_a_long_run_is_at_most_a_hundred_plain_lines_and_its_last_step_is_one() -> None:
    stream = io.StringIO()
    told = run_progress("plain", "dpo", stream)
    for step in range(1, 10_001):
        told.log(step, 10_000, FIGURES)
    lines = stream.getvalue().splitlines()
    assert 50 < len(lines) <= 101
    assert lines[-1].startswith("dpo 10000/10000")


def test_figures_in_words() -> None:
    assert in_words(FIGURES) == (
        "loss 0.6931  accuracy 62%  margin +0.012  log-ratio chosen -0.10  rejected -0.25  12,346 tokens/s  1.50 GiB"
    )
    assert "KL" not in in_words(FIGURES)  # a log-ratio on the batch is none
    assert "KL 0.75 nats" in in_words({"kl": 0.75})


def test_time_left_is_at_the_pace_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 3 to 5 took 10 seconds, so the 15 that are left take 75."""
    told = RunProgress("dpo", io.StringIO())
    told._start_time, told._start_step = 100.0, 3
    monkeypatch.setattr(time, "monotonic", lambda: 110.0)
    assert told.seconds_left(5, 20) == 75.0
    assert (clock(75), clock(3725)) == ("1:15", "1:02:05")


@pytest.mark.parametrize("mode", ["plain", "rich", "json"])
def test_nothing_told_can_steer_the_terminal(mode: str) -> None:
    stream = io.StringIO()
    run_progress(mode, "dpo", stream).print("warning: \x1b]0;owned\x07 and \x1b[2J")
    said = stream.getvalue()
    assert "\x1b]" not in said
    assert "\x1b[2J" not in said
    assert "\x07" not in said


def test_json_has_no_nan() -> None:
    stream = io.StringIO()
    run_progress("json", "dpo", stream).log(1, 2, {"loss": float("nan")})
    event = json.loads(stream.getvalue(), parse_constant=lambda name: pytest.fail(name))
    assert event["loss"] == "nan"


def test_what_is_told_about_the_reference() -> None:
    stream = io.StringIO()
    told = run_progress("json", "dpo", stream)
    with told.reference() as advance:
        advance(3, 7)
        advance(4, 7)
        told.begin(0, 8)
    assert json.loads(stream.getvalue())["reference_records"] == 7
    plain = io.StringIO()
    with run_progress("plain", "dpo", plain).reference() as advance:
        advance(3, 7)
    assert plain.getvalue() == ""  # it took less than half a minute


def test_plain_progress_of_the_reference_has_a_total_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 2.0, 81.0, 82.0])
    stream = io.StringIO()
    shown = run_progress("plain", "dpo", stream)
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    with shown.reference() as advance:
        advance(10, 50)  # in the store
        advance(1, 50)
        advance(19, 50)
        advance(20, 50)
    assert stream.getvalue().splitlines() == ["reference log-probs: 30 of 50 records done  left 1:20"]


def test_the_reference_bar_goes_when_training_begins() -> None:
    terminal = Terminal()
    told = run_progress("rich", "dpo", terminal)
    with told.reference() as advance:
        assert terminal.getvalue() == ""
        advance(7, 9)
        told.begin(0, 8)
        before = len(terminal.getvalue())
        told.log(1, 8, FIGURES)
        told.close()
    assert "7/9" in terminal.getvalue()[:before]
    assert "reference" not in terminal.getvalue()[before:]
