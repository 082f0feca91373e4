"""How a run tells what it does: plain lines, JSON lines, a live bar, or warnings alone."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

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
from tests.cli.conftest import Run

FIGURES = {"loss": 0.6931, "rewards/accuracies": 0.625, "rewards/margins": 0.012, "ratios/chosen": -0.1,
           "ratios/rejected": -0.25, "tokens_per_second": 12345.6, "memory_gib": 1.5}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_have_no_control_characters(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Under pytest stdout is no terminal: `auto` is plain."""
    assert run() == 0
    out = capsys.readouterr().out
    assert all(c == "\n" or c.isprintable() for c in out)
    lines = out[out.index("dpo on ") :].splitlines()  # some libraries greet at their import
    assert [line.split("  ")[0] for line in lines if line.startswith("dpo ")][1:] == [f"dpo {n}/4" for n in range(1, 5)]
    last = next(line for line in lines if line.startswith("dpo 4/4"))
    for words in ("loss 0.", "accuracy ", "margin ", "log-ratio chosen", "tokens/s", "GiB"):
        assert words in last
    assert any("Chosen is likelier, %" in line for line in lines)
    assert lines[-1] == f"report:  {run.out}/report.html"
    assert (run.out / "report.html").is_file()


def test_json_lines(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("progress=json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["step"] for e in events if e["event"] == "log"] == [1, 2, 3, 4]
    begin = next(e for e in events if e["event"] == "begin")
    assert begin == {"event": "begin", "method": "dpo", "step": 0, "steps": 4, "reference_records": 40}
    log = next(e for e in events if e["event"] == "log")
    assert {"loss", "rewards/accuracies", "logps/chosen", "memory_gib", "seconds_left"} <= log.keys()
    assert [e["step"] for e in events if e["event"] == "evaluation"] == [0, 4, 4]  # the last one of the texts
    assert "1,000" in next(e["text"] for e in events if e["event"] == "warning")
    end = events[-1]
    assert end["event"] == "end"
    assert end["output_dir"] == str(run.out)
    assert end["summary"] == json.loads((run.out / "summary.json").read_text())
    assert end["verdict"]["state"] in ("good", "look", "bad")


def test_quiet_says_warnings_alone_and_not_on_stdout(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("progress=quiet") == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["warning: 32 records: results from fewer than 1,000 are mostly noise"]


def test_an_unknown_mode_is_refused_before_anything_is_made(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("progress=jsn") == 2
    assert "did you mean 'json'?" in capsys.readouterr().err
    assert not list(run.out.iterdir())


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


def test_a_kl_that_was_measured_stays_in_sight(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("sentinels.measure=true", "trainer.eval_strategy=steps", "trainer.eval_steps=2", "trainer.max_steps=3")
    assert run(*given) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split("  ")[0]: " KL " in line for line in lines if line.startswith("dpo ") and "/3" in line}
    assert told == {"dpo 1/3": False, "dpo 2/3": True, "dpo 3/3": True}  # the last of 2/3 is the held-out line
    assert "KL to the base model by step" in (run.out / "report.html").read_text()


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
        advance(3)
        advance(4)
        told.begin(0, 8)
    assert json.loads(stream.getvalue())["reference_records"] == 7
    plain = io.StringIO()
    with run_progress("plain", "dpo", plain).reference() as advance:
        advance(3)
    assert plain.getvalue() == ""  # it took less than half a minute


def test_the_reference_bar_goes_when_training_begins() -> None:
    terminal = Terminal()
    told = run_progress("rich", "dpo", terminal)
    with told.reference() as advance:
        assert terminal.getvalue() == ""
        advance(7)
        told.begin(0, 8)
        before = len(terminal.getvalue())
        told.log(1, 8, FIGURES)
        told.close()
    assert "7 records" in terminal.getvalue()[:before]
    assert "records" not in terminal.getvalue()[before:]


def test_a_multirun_tells_each(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from prefopt.cli import main

    given = [g for g in run.given if not g.startswith(("output_dir", "trainer.max_steps"))]
    runs = ["loss=sft,simpo", f"hydra.sweep.dir={tmp_path}/sweep", "trainer.max_steps=1"]
    assert main(["train", "-m", *given, *runs]) == 0
    out = capsys.readouterr().out
    for name in ("0-sft", "1-simpo"):
        assert f"{tmp_path}/sweep/{name}/report.html" in out
        assert (tmp_path / "sweep" / name / "report.html").is_file()
