"""What `prefopt train` prints while it runs."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Run


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
    assert not run.out.exists()


def test_a_kl_that_was_measured_stays_in_sight(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("sentinels.measure=true", "trainer.eval_strategy=steps", "trainer.eval_steps=2", "trainer.max_steps=3")
    assert run(*given) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split("  ")[0]: " KL " in line for line in lines if line.startswith("dpo ") and "/3" in line}
    assert told == {"dpo 1/3": False, "dpo 2/3": True, "dpo 3/3": True}  # the last of 2/3 is the held-out line
    assert "KL to the base model by step" in (run.out / "report.html").read_text()
