"""A plan of a run on the policy's own samples says what it takes at most."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import prefopt.planning.plan as plan_module
from prefopt.cli import main
from prefopt.config.compose import compose
from prefopt.data.tokens import TokenRecord
from prefopt.planning.own_samples import Samples
from prefopt.plugin import Data


def samples(*overrides: str) -> Samples:
    """Of 10 prompts with 1 to 10 tokens, each with a pair."""
    config = compose(["source=rollouts", "reward=m:f", *overrides])
    text = np.array([1], dtype=np.int32)
    records = [
        TokenRecord(id=str(n), kind=Data.PAIRS, prompt=np.full(n, n, np.int32), completions=(text, text))
        for n in range(1, 11)
    ]
    return Samples.of(config, records, vocabulary=50)


@pytest.mark.parametrize(
    ("loss", "of_prompt", "completions"), [("rloo", 1, 4), ("dpo", 2, 2), ("sft", 1, 1), ("apo_zero", 2, 2)]
)
def test_texts_become_the_records_of_the_loss(loss: str, of_prompt: int, completions: int) -> None:
    found = samples(f"loss={loss}", "batch.records=4", "rollout.max_new_tokens=6")
    assert found.of_prompt == of_prompt
    assert {len(record.completions) for record in found.records} == {completions}
    assert {len(text) for record in found.records for text in record.completions} == {6}
    assert found.longest == 10


def test_counts_are_of_rollouts() -> None:
    """10 prompts in batches of 4 are three rollouts an epoch, of 4, 4 and 2 prompts."""
    found = samples("loss=rloo", "batch.records=4", "rollout.num_generations=2", "rollout.updates=2")
    arguments = SimpleNamespace(max_steps=-1, num_train_epochs=2)
    planned = found.schedule(_schedule(), arguments)
    assert (planned.steps_per_epoch, planned.steps, planned.records) == (6, 12, 10)
    assert [found.count(steps) for steps in (1, 2, 3, 6, 7, 12)] == [8, 8, 16, 20, 28, 40]


def _schedule() -> Any:
    from prefopt.planning.schedule import Schedule

    return Schedule(
        records=0, records_per_step=0, steps=0, steps_per_epoch=0, micro_batches=1.0, tokens_per_step=1.0,
        work_per_step=1.0, heaviest=np.zeros(1, np.int64), heaviest_tokens=1, heaviest_scored=1, several=False,
    )  # fmt: skip


def test_a_plan_says_samples_and_what_they_take(
    model_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFOPT_MALLOC", "0")
    given = [f"model.path={model_folder}", f"data.path={pairs_file}", "data.eval_records=8", "batch.records=8",
             "source=rollouts", "reward=math:sqrt", "trainer.max_steps=6", "evaluation.texts=1",
             "evaluation.kl_prompts=2", "evaluation.max_new_tokens=4"]  # fmt: skip
    found = {}
    for new in (4, 12):
        assert main(["plan", "--json", "loss=rloo", *given, f"rollout.max_new_tokens={new}"]) == 0
        found[new] = json.loads(capsys.readouterr().out)
    short, long = found[4], found[12]
    assert (short["samples"], short["samples_per_rollout"], short["steps"]) == (6 * 8 * 4, 32, 6)
    assert (short["tokens_sampled_at_most"], long["tokens_sampled_at_most"]) == (6 * 32 * 4, 6 * 32 * 12)
    assert long["tokens_per_step"] - short["tokens_per_step"] == 32 * 8  # a tree has the prompt once
    assert long["longest_row_tokens"] > short["longest_row_tokens"]
    assert short["seconds_by_part"]["sampling"] > 0
    assert short["memory_gib"]["reference"] > 0  # a live one scores the samples
    assert not [said for said in short["warnings"] if "fewer than" in said]
    assert main(["plan", "loss=rloo", *given, "rollout.max_new_tokens=4"]) == 0
    assert "192 samples, 32 at once" in capsys.readouterr().out


def test_noise_of_the_clock_does_not_make_sampling_free(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 3.0, 10.0, 12.0])  # two tokens took longer than six
    monkeypatch.setattr(plan_module, "generate", lambda *args, **options: None)
    monkeypatch.setattr(plan_module.time, "perf_counter", lambda: next(clock))
    assert plan_module._token_seconds(None, [[1], [2]]) == pytest.approx(2.0 / 12)
