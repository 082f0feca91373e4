"""`prefopt train source=rollouts`: what a run on the model's own samples leaves behind, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from prefopt.cli import main
from prefopt.worlds.build import WorldFiles
from tests.cli.conftest import Run
from tests.train.test_processes import python

SHORT = "def short(prompts, completions):\n    return [-len(text) / 10 for text in completions]\n"


@pytest.fixture
def reward(tmp_path: Path) -> str:
    (tmp_path / "rewards_of_mine.py").write_text(SHORT)
    return f"reward={tmp_path / 'rewards_of_mine.py'}:short"


@pytest.mark.parametrize("loss", ["rloo", "dpo"])
def test_a_run_leaves_its_samples_and_what_the_reward_says_of_it(run: Run, loss: str, reward: str) -> None:
    assert run(f"loss={loss}", "source=rollouts", reward, "rollout.max_new_tokens=4", "batch.records=3") == 0
    rows = [json.loads(line) for line in (run.out / "rollouts.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [step for step in (1, 2, 3, 4) for _ in range(3 * 4)]
    assert rows[0].keys() == {"step", "weights", "prompt", "text", "reward", "ended", "advantage"}
    assert (rows[0]["advantage"] is None) == (loss == "dpo")
    metrics = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    training = [m for m in metrics if "learning_rate" in m]
    assert all({"reward", "kl", "entropy", "ratio/max_deviation"} <= m.keys() for m in training)
    mean = sum(row["reward"] for row in rows[:12]) / 12
    assert training[0]["reward"] == pytest.approx(mean)
    summary = json.loads((run.out / "summary.json").read_text())
    assert summary["texts"]["reward_change"]["count"] == 4
    assert summary["after"]["reward"] == pytest.approx(summary["texts"]["reward"]["value"])
    assert not (run.out / "heldout.jsonl").exists()
    page = (run.out / "report.html").read_text()
    assert "Own texts, reward" in page
    assert "Samples that it learned from" in page
    assert ("advantage" in page.split("Samples that it learned from")[1].split("Data card")[0]) == (loss == "rloo")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss=rloo"], "loss=rloo learns from the policy's own samples: add source=rollouts"),
        (["source=rollouts"], "source=rollouts needs a reward"),
        (["reward=world"], "source=offline has none"),
        (["source=rollout", "reward=world"], "did you mean 'rollouts'"),
        (["source=rollouts", "reward=nothing"], "give world, the folder of a reward model, module:function"),
        (["source=rollouts", "reward={maen:[world]}"], "a table has one of mean, min, sum, centred"),
        (["source=rollouts", "reward=world", "loss=bradley_terry"], "trains a reward model, which writes no texts"),
        (["source=rollouts", "reward=math:nothing"], "math has no function 'nothing'"),
        (["source=rollouts", "reward=world", "loss=kto"], "completions of other prompts"),
        (["source=rollouts", "reward=world", "rollout.num_generations=3"], "must be even"),
        (["source=rollouts", "reward=world", "rollout.label=ARGMAX"], "no finite optimum where one text always wins"),
        (["source=samples"], "source=samples needs a reward"),
        (["source=samples", "reward=world", "loss=rloo"], "loss=rloo learns from the policy's own samples"),
        (["rounds=2"], "rounds=2: rounds are of source=samples"),
        (["rounds=0"], "rounds=0 must be at least 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    run: Run, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*overrides) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Is {i} even?"}) + "\n" for i in range(20)))
    return path


def test_prompts_alone_are_enough(run: Run, reward: str, prompts_file: Path) -> None:
    given = [f"data.path={prompts_file}", "rollout.max_new_tokens=4", "batch.records=3", "trainer.max_steps=1"]
    assert run("loss=rloo", "source=rollouts", reward, *given) == 0
    rows = [json.loads(line) for line in (run.out / "rollouts.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == 3
    summary = json.loads((run.out / "summary.json").read_text())
    assert summary["counts"]["train"] + summary["counts"]["eval"] == 20


def test_prompts_alone_are_nothing_to_learn_from(
    run: Run, prompts_file: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("loss=dpo", f"data.path={prompts_file}") == 2
    assert "the data has prompts alone, and this loss learns from completions: add source=rollouts" in (
        capsys.readouterr().err
    )
    assert main(["eval", str(model_folder), f"data.path={prompts_file}"]) == 2
    assert "prompts alone, which have no text to score" in capsys.readouterr().err


def test_prompts_alone_are_checked_and_shown(
    prompts_file: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(prompts_file), "--tokenizer", str(model_folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["kind"], report["kept"]) == ("prompts", "prompts", 20)
    assert main(["data", "show", str(prompts_file), "--row", "3", "--tokenizer", str(model_folder)]) == 0
    shown = capsys.readouterr().out
    assert "completion" not in shown.split("prompt:")[1]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "sft"])
def test_rounds_learn_from_samples_of_the_model_before(
    loss: str, run: Run, reward: str, prompts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command for the rounds; a second one finds all that is there, and other options are refused by name."""
    given = [f"loss={loss}", "source=samples", reward, f"data.path={prompts_file}", "rollout.max_new_tokens=100",
             "trainer.max_steps=2", "rounds=2", f"stages_folder={run.out.parent / 'stages'}"]  # fmt: skip
    assert run(*given) == 0
    stages = json.loads((run.out / "stages.json").read_text())
    assert [(stage["name"], stage["found"]) for stage in stages] == [("round1", False)]
    first, last = Path(stages[0]["folder"]), run.out
    made = {}
    for folder in (first, last):
        drawn = [json.loads(line) for line in (folder / "drawn.jsonl").read_text().splitlines()]
        rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        made[folder] = {row["texts"][0]["model"] for row in drawn}
        assert all(len(row["rewards"]) == 4 for row in drawn)
        own = ["chosen", "rejected", "chosen_score", "rejected_score"] if loss == "dpo" else ["completion"]
        assert rows[0].keys() - {"ended"} == {"prompt", "provenance", *own}
    assert made[last] == {str((first / "final").resolve())}
    assert made[first] != made[last]
    assert json.loads((first / "drawn.json").read_text())["made_of"]["seed"] == 0
    (last / "summary.json").unlink()  # as if the second round had not come to its end
    capsys.readouterr()
    assert run(*given) == 0
    said = capsys.readouterr().out
    assert f"found in {first}" in said
    assert f"samples: found in {last / 'drawn.jsonl'}" in said
    (last / "summary.json").unlink()
    (first / "summary.json").unlink()
    changed = ["rounds=1", f"output_dir={first}", "rollout.temperature=0.5"]
    assert run(*given[:-2], *changed) == 2
    assert "has samples that were made with another rollout.temperature: give what" in capsys.readouterr().err


@pytest.mark.slow
def test_several_processes_learn_from_samples_that_the_first_one_drew(world_files: WorldFiles, tmp_path: Path) -> None:
    """On a world, whose models all processes look up together."""
    code = "import sys; from prefopt.cli import main; sys.exit(main())"
    done = python(
        "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2", "--no-python",
        sys.executable, "-W", "ignore", "-c", code, "train", "loss=dpo", "source=samples", "data.max_records=32",
        "rollout.max_new_tokens=8", "batch.records=8", "trainer.max_steps=1", "evaluation.kl_prompts=2",
        "evaluation.max_new_tokens=8", f"output_dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 1
    assert (tmp_path / "records.jsonl").read_text()
