"""Figures over held-out records: by hand, and whatever the batches."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.data.tokens import TokenRecord
from prefopt.losses.registry import load
from prefopt.losses.simpo import SimPO
from prefopt.plugin import Data, LossOutput
from prefopt.train import BatchConfig, train
from prefopt.train.callbacks import MetricsFile
from tests.train import tiny

BETA = 0.1


def _sums(model: Any, data: list[TokenRecord]) -> list[list[float]]:
    with torch.no_grad():
        return [[float(tiny.plain_logps(model, r.prompt, c).sum()) for c in r.completions] for r in data]


def _mean(values: Any) -> float:
    return float(np.mean([float(v) for v in values]))


def _softplus(x: float) -> float:
    return float(np.logaddexp(0.0, x))


@pytest.mark.parametrize(
    "config", [BatchConfig(records=32), BatchConfig(records=5, max_tokens=60)], ids=["one", "many"]
)
def test_pairs_by_hand(config: BatchConfig, tmp_path: Path) -> None:
    data = tiny.records(Data.PAIRS, 14, weights=True)
    policy, reference = tiny.model(), tiny.model(seed=1)
    trainer = tiny.make(load("dpo", beta=BETA), data, tmp_path, policy, eval=data, reference=reference, batch=config)
    found = trainer.evaluate()
    own, ref = _sums(policy, data), _sums(reference, data)
    lengths = [[len(c) for c in r.completions] for r in data]
    ratio = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(own, ref, strict=True)]
    wanted: dict[str, float] = {
        "loss": _mean(record.weight * _softplus(-BETA * (w - r)) for record, (w, r) in zip(data, ratio, strict=True)),
        "rewards/chosen": _mean(BETA * w for w, _ in ratio),
        "rewards/rejected": _mean(BETA * r for _, r in ratio),
        "rewards/margins": _mean(BETA * (w - r) for w, r in ratio),
        "rewards/accuracies": _mean(w > r for w, r in ratio),
        "rewards/ties": 0.0,
        "records": 14.0,
    }
    means = [[s / n for s, n in zip(x, y, strict=True)] for x, y in zip(own, lengths, strict=True)]
    for name, rows in (("logps", own), ("logps_mean", means), ("ratios", ratio), ("lengths", lengths)):
        wanted |= {f"{name}/chosen": _mean(w for w, _ in rows), f"{name}/rejected": _mean(r for _, r in rows)}
        if name != "lengths":
            wanted[f"margins/{name}"] = _mean(w - r for w, r in rows)
            wanted[f"accuracies/{name}"] = _mean(w > r for w, r in rows)
    assert found.keys() - {"eval_runtime", "epoch"} == {f"eval_{name}" for name in wanted}
    for name, value in wanted.items():
        assert found[f"eval_{name}"] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("name", [*tiny.CORE, "aot", "bco"])
def test_figures_of_held_out_pairs_do_not_depend_on_the_batches(name: str, tmp_path: Path) -> None:
    """For coupled losses the global batches stay: 2 of 8 records, whatever the micro-batches."""
    data = tiny.records(Data.PAIRS, 16)
    loss = load(name)
    whole = loss.needs.coupled
    found = []
    for config in (BatchConfig(records=8), BatchConfig(records=8 if whole else 3, max_tokens=60)):
        figures = tiny.make(loss, data, tmp_path, eval=data, batch=config).evaluate()
        found.append({k: v for k, v in figures.items() if k != "eval_runtime"})
    assert found[1] == pytest.approx(found[0], rel=1e-6, abs=1e-6)


def test_every_method_reports_the_same_figures_of_the_texts(tmp_path: Path) -> None:
    """Those that do not depend on the loss are equal before training, and there are the same names."""
    data = tiny.records(Data.PAIRS, 12)
    found = {name: tiny.make(load(name), data, tmp_path, eval=data).evaluate() for name in tiny.CORE}
    shared = {k for k in found["dpo"] if k.split("/")[0] not in ("eval_rewards", "eval_loss", "eval_runtime")}
    for name, figures in found.items():
        assert {k: figures[k] for k in shared} == pytest.approx({k: found["dpo"][k] for k in shared}, abs=1e-9)
        rewards = {k for k in figures if k.startswith("eval_rewards/")}
        sides = {"chosen", "rejected", "margins", "accuracies", "ties"} if name != "sft" else set()  # sft has none
        assert rewards == {f"eval_rewards/{side}" for side in sides}


def test_unpaired_by_hand(tmp_path: Path) -> None:
    data = tiny.records(Data.UNPAIRED, 11)
    policy, reference = tiny.model(), tiny.model(seed=1)
    trainer = tiny.make(load("kto_zero", beta=BETA), data, tmp_path, policy, eval=data, reference=reference,
                        batch=BatchConfig(records=4))  # fmt: skip
    found = trainer.evaluate()
    own, ref = _sums(policy, data), _sums(reference, data)
    rho = [a[0] - b[0] for a, b in zip(own, ref, strict=True)]
    good = [x for x, r in zip(rho, data, strict=True) if r.desirable]
    bad = [x for x, r in zip(rho, data, strict=True) if not r.desirable]
    assert len(good) == 5, "six are undesirable: sides of unequal counts"
    loss = _mean([1 / (1 + np.exp(BETA * x)) for x in good] + [1 / (1 + np.exp(-BETA * x)) for x in bad])
    assert found["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert found["eval_rewards/chosen"] == pytest.approx(BETA * _mean(good), rel=1e-5)
    assert found["eval_rewards/rejected"] == pytest.approx(BETA * _mean(bad), rel=1e-5)
    assert found["eval_rewards/margins"] == pytest.approx(BETA * (_mean(good) - _mean(bad)), rel=1e-5)
    assert found["eval_ratios/chosen"] == pytest.approx(_mean(good), rel=1e-5)
    assert found["eval_lengths/rejected"] == _mean(len(r.completions[0]) for r in data if not r.desirable)
    assert "eval_rewards/accuracies" not in found, "there is no pair to be right about"


def test_lists_by_hand(tmp_path: Path) -> None:
    """Chosen and rejected are the best and the worst of each list, of any length."""
    data = tiny.records(Data.LISTS, 10)
    assert {len(r.completions) for r in data} == {2, 3, 4}
    policy, reference = tiny.model(), tiny.model(seed=1)
    trainer = tiny.make(load("plackett_luce", beta=BETA), data, tmp_path, policy, eval=data, reference=reference,
                        batch=BatchConfig(records=3))  # fmt: skip
    found = trainer.evaluate()
    own, ref = _sums(policy, data), _sums(reference, data)
    losses, best, worst = [], [], []
    for record, x, y in zip(data, own, ref, strict=True):
        assert record.scores is not None
        ranked = [BETA * (x[i] - y[i]) for i in np.argsort(record.scores)[::-1]]
        losses.append(sum(np.logaddexp.reduce(ranked[k:]) - ranked[k] for k in range(len(ranked))))
        best.append(ranked[0])
        worst.append(ranked[-1])
    assert found["eval_loss"] == pytest.approx(_mean(losses), rel=1e-5)
    assert found["eval_rewards/chosen"] == pytest.approx(_mean(best), rel=1e-5)
    assert found["eval_rewards/rejected"] == pytest.approx(_mean(worst), rel=1e-5)
    assert found["eval_rewards/accuracies"] == _mean(b > w for b, w in zip(best, worst, strict=True))
    assert found["eval_ratios/chosen"] == pytest.approx(_mean(best) / BETA, rel=1e-5)


def test_demonstrations_by_hand(tmp_path: Path) -> None:
    data = tiny.records(Data.DEMONSTRATIONS, 9, weights=True)
    policy = tiny.model()
    found = tiny.make(load("sft"), data, tmp_path, policy, eval=data, batch=BatchConfig(records=4)).evaluate()
    means = [x[0] / len(r.completions[0]) for x, r in zip(_sums(policy, data), data, strict=True)]
    assert found["eval_loss"] == pytest.approx(_mean(-r.weight * m for r, m in zip(data, means, strict=True)), rel=1e-5)
    assert found["eval_logps_mean/chosen"] == pytest.approx(_mean(means), rel=1e-5)
    assert not any("rejected" in name for name in found)


@dataclass(frozen=True, kw_only=True)
class Even(SimPO):
    """Rewards that tie on every pair."""

    def __call__(self, logps: Any, /) -> LossOutput:
        output = super().__call__(logps)
        return replace(output, rejected_reward=output.chosen_reward)


def test_ties_are_half_right_and_are_counted(tmp_path: Path) -> None:
    data = tiny.records(Data.PAIRS, 6)
    found = tiny.make(Even(), data, tmp_path, eval=data).evaluate()
    assert (found["eval_rewards/accuracies"], found["eval_rewards/ties"]) == (0.5, 1.0)


def test_evaluation_leaves_training_as_it_was(tmp_path: Path) -> None:
    """A stateful loss, dropout's random numbers, and the weights."""
    data = tiny.records(Data.PAIRS, 32)
    with_, without = (
        tiny.run(load("bco"), data, tmp_path, eval=data, eval_strategy=when, eval_steps=1, max_steps=3)
        for when in ("steps", "no")
    )
    assert with_.losses == without.losses
    assert tiny.apart(with_.weights, without.weights) == 0.0


def test_result_and_metrics_file(tmp_path: Path) -> None:
    data = tiny.records(Data.PAIRS, 16)
    policy = tiny.model()
    result = train(
        policy,
        load("ipo"),
        data,
        output_dir=tmp_path,
        eval=data[:7],
        store=tmp_path / "reference",
        batch=BatchConfig(records=4),
        callbacks=[MetricsFile(tmp_path / "metrics.jsonl")],
        num_train_epochs=2,
        **tiny.OPTIONS,
    )
    assert result.trainer.state.global_step == 8
    assert result.before["loss"] == pytest.approx(25.0, rel=1e-5)  # 1 / (4 * 0.1^2)
    assert result.after["loss"] < result.before["loss"]
    assert result.before.keys() == result.after.keys()
    assert (result.reference_hits, result.reference_misses) == (2 * 7, 2 * 16)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, *range(1, 9), 8, 8]
    assert lines[0]["eval_loss"] == result.before["loss"]
    assert lines[-1]["eval_loss"] == result.after["loss"]
    design = ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
              "logps/rejected", "loss", "grad_norm"]  # fmt: skip
    for line in lines[1:9]:
        assert line.keys() >= {*design, "learning_rate", "logps_mean/chosen", "lengths/rejected", "tokens_per_second"}


def test_figures_cover_every_step_up_to_the_last(tmp_path: Path) -> None:
    data = tiny.records(Data.PAIRS, 32)
    each = tiny.run(load("dpo"), data, tmp_path, max_steps=5)
    some = tiny.run(load("dpo"), data, tmp_path, max_steps=5, logging_steps=3)
    assert [log["step"] for log in some.logs] == [3, 5]
    for log, steps in zip(some.logs, (each.logs[:3], each.logs[3:]), strict=True):
        for name in ("loss", "rewards/margins", "logps/chosen"):
            assert log[name] == pytest.approx(_mean(step[name] for step in steps), rel=1e-5)
    assert tiny.run(load("dpo"), data, tmp_path, max_steps=5, logging_strategy="no").logs == []


def test_the_reported_loss_is_the_weighted_one(tmp_path: Path) -> None:
    data = tiny.records(Data.PAIRS, 16)
    half = [replace(r, weight=0.5) for r in data]
    whole_run, half_run = (tiny.run(load("dpo"), d, tmp_path, eval=d, max_steps=1) for d in (data, half))
    assert half_run.losses[0] == pytest.approx(whole_run.losses[0] / 2, rel=1e-6)
    figures = [kept.trainer.evaluate() for kept in (whole_run, half_run)]
    assert figures[1]["eval_rewards/chosen"] != 0.0
    again = [tiny.make(load("dpo"), d, tmp_path, eval=d).evaluate()["eval_loss"] for d in (data, half)]
    assert again[1] == pytest.approx(again[0] / 2, rel=1e-6)
