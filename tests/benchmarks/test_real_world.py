"""The suites on a real model and on the ladder: their rows compose, and their tables and predictions read results."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import committed  # noqa: E402
import ladder  # noqa: E402
import ladder_tables  # noqa: E402
import real_world  # noqa: E402
import real_world_tables  # noqa: E402

from prefopt.compare.rounds import Rounds, configuration  # noqa: E402
from prefopt.compare.spec import MeasureConfig  # noqa: E402
from tests.worlds.stand_in import overrides, stand_in  # noqa: E402

JOBS = {"processors": {"a processor": 3, "another": 1}, "draws_in_several_versions": 1}
NAMES = ["base", "sft", *real_world.OFFLINE, "rloo_tokens", "rloo_labels", "dpo_again", "wrong_sign"]


def test_rows_have_equal_texts_and_as_many_tokens_or_labels() -> None:
    said = real_world.comparison("instructions", trials=4, seeds=3)
    rounds = Rounds(said)
    assert {row.name for row in said.rows()} == set(NAMES) - {"base"}
    offline, online = rounds.configs["dpo"], rounds.configs["rloo_labels"]
    assert offline.data.path == offline.model.path == "world/instructions"
    texts = online.batch.records * online.rollout.num_generations
    assert texts == 2 * offline.batch.records == 32
    assert online.trainer["max_steps"] * texts == offline.trainer["max_steps"] * offline.batch.records
    assert online.reward == "world"
    assert rounds.trials_each == 4
    assert [method.control for method in said.rows()].count(True) == 2


def test_jobs_run_seed_after_seed_until_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, name: str, seed: int) -> None:
            self.name, self.config = name, type("Config", (), {"seed": seed})

    ran: list[str] = []

    def run(suite: str, jobs: list[Any], workers: int, arrays: Any) -> list[str]:
        ran.extend(job.name for job in jobs)
        return [job.name for job in jobs]

    monkeypatch.setattr(real_world.world_suite, "run", run)
    jobs = [Fake("a1", 1), Fake("a2", 2), Fake("b1", 1), Fake("again1", 4), Fake("base", 0)]
    assert real_world.runner("suite", 1, 60)(jobs) == ["a1", "a2", "b1", "again1", "base"]
    assert ran == ["base", "a1", "b1", "again1", "a2"], "the second row of a method is at seeds 4, 5, 6"
    with pytest.raises(real_world.OutOfTime, match="5 jobs of this round are left"):
        real_world.runner("suite", 1, -1)(jobs)


def result(metric: str = "true_reward") -> dict[str, Any]:
    """A made-up result file: row i has the score i / 100."""
    rows = [
        {"name": name, "point": i / 100, "interval": [i / 100 - 0.01, i / 100 + 0.01],
         "chosen": {"learning_rate": 1e-5}, "edges": [], "reason": "",
         "cost": {"labels": 384.0, "tokens_trained": 1000.0}, "kl": i / 10, "valid": 0.5,
         "length": 20.0, "accuracy": 0.5, metric: i / 100}
        for i, name in enumerate(NAMES)
    ]  # fmt: skip
    rows[0] |= {"interval": None, "chosen": None}
    verdicts = [{"a": "ipo", "b": "dpo", "verdict": "better"}, {"a": "dpo", "b": "kto", "verdict": "better"}]
    setting = {"trials": 5, "seeds": 3, "steps": 24, "pairs": 16}
    return {"metric": metric, "rows": rows, "verdicts": verdicts, "setting": setting, "jobs": JOBS}


def test_tables_check_the_predictions() -> None:
    written = real_world_tables.real_world(result(), "real_world_instructions")
    assert "| ipo | 0.03 (0.02 to 0.04) | better |" in written
    assert "| kto | 0.04 (0.03 to 0.05) | worse |" in written
    assert (
        "Jobs: 3 on a processor, 1 on another. Draws of the data that differ between machines by rounding: 1."
        in written
    )
    assert "| DPO gains at least 0.05 over the base model | 0.02 against 0.00 | **no** |" in written
    for suite in real_world_tables.SUITES:
        for said in json.loads(real_world_tables.PREDICTIONS.read_text())[suite]:
            metric = "judge" if suite.endswith("hh_rlhf") else "true_reward"
            for side in ("left", "right"):
                assert real_world_tables.figure(result(metric), said[side]) is not None, said
    assert real_world_tables.picture(result()).startswith("<")


def test_kept_results_have_what_tables_read() -> None:
    row = {"name": "dpo", "point": 0.5, "interval": [0.4, 0.6], "by_seed": [0.5], "chosen": {"beta": 0.1}, "edges": [],
           "control": False, "online": False, "reason": "", "cost": {"labels": 3.0},
           "figures": {"true_reward": 0.5, "kl": 1.0},
           "trials": [{"setting": {"beta": 0.1}, "figures": {"true_reward": 0.4}}]}  # fmt: skip
    said = {"budget": {"trials": 5}, "seeds": 1}
    found = {"metric": "true_reward", "verdicts": [], "warnings": [], "comparison": said, "methods": [row]}
    kept = real_world.kept(found) | {"jobs": JOBS}
    assert kept["rows"][0]["trials"] == [[{"beta": 0.1}, 0.4]]
    assert "dpo" in real_world_tables.real_world(kept, "real_world_instructions")


def test_the_sizes_of_the_ladder() -> None:
    config = configuration(said := ladder.comparison(32), said.methods[0])
    assert config.data.world == {"width": 32}
    assert config.trainer["max_steps"] == ladder.STEPS
    # embedding 65 h, two layers of 4 h^2 + 3 h (11 h / 4) + 2 h, a last norm of h
    expected = [49 * h * h // 2 + 70 * h for h in ladder.WIDTHS]
    assert [ladder.new_model(0, width).num_parameters() for width in ladder.WIDTHS] == expected


def test_the_ladders_table() -> None:
    rows = [{"name": "dpo", "point": 0.5, "interval": [0.4, 0.6], "edges": ["learning_rate"]},
            {"name": "kto", "point": None, "interval": None, "edges": []}]  # fmt: skip
    groups = {"difference": 0.1, "interval": [-0.1, 0.3], "verdict": "cannot_tell"}
    sizes = [{"weights": 27_000, "rows": rows, "agreement": 1.0, "groups": groups, "jobs": JOBS},
             {"weights": 105_000, "rows": rows, "agreement": None, "groups": None, "jobs": JOBS}]  # fmt: skip
    found = {"sizes": sizes, "setting": {"steps": 96, "pairs": 64, "trials": 4, "seeds": 3}}
    written = ladder_tables.ladder(found)
    assert "| dpo | 0.50 (0.40 to 0.60, edge) |" in written
    assert "cannot tell" in written
    assert "Jobs: 6 on a processor, 2 on another." in written
    assert ladder_tables.picture(found).startswith("<")
    order = ladder.order([{"name": "kto", "point": 0.3}, {"name": "dpo", "point": None}])
    assert order[3] == 0.3
    assert order[0] != order[0]


@pytest.mark.slow
def test_the_whole_suite_on_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials, finals, committed jobs, result file and table, on a tiny world; a second call runs nothing again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    said = (*overrides(stand_in(tmp_path)), "evaluation.max_new_tokens=8", "rollout.max_new_tokens=8")
    setting = real_world.Setting(said, (), MeasureConfig(prompts=4, samples_per_prompt=1, texts=1))
    monkeypatch.setitem(real_world.SETTINGS, "instructions", lambda: setting)
    for name, value in {"STEPS": 1, "PAIRS": 4, "LABEL_STEPS": 1, "TOKEN_STEPS": 2, "PROMPTS": 2}.items():
        monkeypatch.setattr(real_world, name, value)
    monkeypatch.setattr(real_world, "OFFLINE", ("dpo", "kto"))
    monkeypatch.setattr(committed, "FOLDER", tmp_path / "jobs")
    monkeypatch.setattr(real_world.world_suite, "RESULTS", tmp_path)
    arguments = ["real_world.py", "instructions", "--trials", "2", "--seeds", "1", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    real_world.main()
    found = json.loads((tmp_path / "real_world_instructions.json").read_text())
    names = {row["name"] for row in found["rows"]}
    assert names == {"base", "sft", "dpo", "kto", "rloo_tokens", "rloo_labels", "dpo_again", "wrong_sign"}
    assert all(row["point"] is not None for row in found["rows"])
    assert len(list((tmp_path / "jobs" / "real_world_instructions").glob("*.json"))) == 2 + 6 * 2 + 7
    assert sum(found["jobs"]["processors"].values()) == 2 + 6 * 2 + 7
    assert "| dpo |" in real_world_tables.real_world(found, "real_world_instructions")
    ran: list[Any] = []
    monkeypatch.setattr(import_module("prefopt.compare.workers"), "execute", ran.append)
    shutil.rmtree("runs")
    real_world.main()
    assert not ran, "another machine goes on from what was committed"
