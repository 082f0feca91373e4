"""What a run is watched for: each sign provoked, told once, and able to end the run; batches that broke a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from prefopt.errors import ThresholdError, TrainingError, UserError
from prefopt.losses.registry import load
from prefopt.plugin import Data, LossOutput
from prefopt.train import BatchConfig, train
from prefopt.train import replay as replaying
from prefopt.train.sentinels import SentinelConfig, Sentinels
from tests.train import tiny

PAIRS = tiny.records(Data.PAIRS, 16)


def watched(loss: Any, folder: Path, config: SentinelConfig, data: Any = PAIRS, **options: Any) -> tuple[Any, Any]:
    """A run of 6 steps with these bounds: its trainer, and what was told."""
    told: list[str] = []
    sentinels = Sentinels(config, told.append)
    options = {"max_steps": 6, "batch": BatchConfig(records=16)} | options
    result = train(
        tiny.model(), loss, data, output_dir=folder, store=folder / "reference", sentinels=sentinels,
        **tiny.OPTIONS | options,
    )  # fmt: skip
    return result.trainer, told


def names(trainer: Any) -> list[str]:
    return [finding.sentinel for finding in trainer.sentinels.findings]


def test_a_quiet_run_is_told_nothing(tmp_path: Path) -> None:
    trainer, told = watched(load("dpo"), tmp_path, SentinelConfig(), learning_rate=1e-3, eval=PAIRS)
    assert told == []
    assert names(trainer) == []


def test_a_chosen_side_that_falls(tmp_path: Path) -> None:
    """Unlikelihood on everything would do; here DPO at a rate that tears both sides down."""
    trainer, told = watched(load("dpo"), tmp_path, SentinelConfig(chosen_fall=0.05), learning_rate=0.1)
    assert names(trainer).count("chosen_fall") == 1, "told once"
    assert "nats a token since training began" in told[names(trainer).index("chosen_fall")]
    logged = [log for log in trainer.state.log_history if "sentinels/chosen_fall" in log]
    assert len(logged) == 1, "in the figures, for whoever tracks them"
    first = next(log for log in trainer.state.log_history if "learning_rate" in log)
    expected = first["logps_mean/chosen"] - logged[0]["logps_mean/chosen"]
    assert logged[0]["sentinels/chosen_fall"] == pytest.approx(expected)
    assert expected > 0.05


def test_pairs_that_are_too_easy(tmp_path: Path) -> None:
    """Sixteen pairs, learnt by heart within a few steps."""
    config = SentinelConfig(easy_records=32, easy_steps=20, margin=None)
    trainer, told = watched(load("dpo"), tmp_path, config, learning_rate=0.03, max_steps=12)
    assert "easy" in names(trainer)
    assert any("all ranked right" in line for line in told)
    few = SentinelConfig(easy_records=32, easy_steps=1)
    assert "easy" not in names(watched(load("dpo"), tmp_path, few, learning_rate=0.03)[0]), "later is no sign"


def test_margins_that_explode(tmp_path: Path) -> None:
    config = SentinelConfig(margin=50.0, easy_records=None, chosen_fall=None)
    trainer, told = watched(load("dpo", beta=50.0), tmp_path, config, learning_rate=0.05)
    assert names(trainer) == ["margin"]
    assert "reward margin" in told[0]


def test_pairs_that_tie(tmp_path: Path) -> None:
    """With no learning rate the policy stays the reference: every implicit reward is 0."""
    trainer, told = watched(load("dpo"), tmp_path, SentinelConfig(tie_steps=4), learning_rate=0.0)
    assert names(trainer) == ["ties"]
    assert trainer.sentinels.findings[0].step == 4
    assert "nothing is learnt" in told[0]


def test_kl_and_lengths_of_the_texts(tmp_path: Path) -> None:
    """Measured at evaluations, by whoever trains; here numbers that go astray."""
    seen = iter([(29.0, 19.0), (31.0, 25.0)])

    def probe(model: Any) -> dict[str, float]:
        kl, length = next(seen)
        return {"kl": kl, "sampled_length": length, "sampled_length_before": 10.0}

    trainer, told = watched(
        load("dpo"), tmp_path, SentinelConfig(), learning_rate=1e-3, eval=PAIRS, eval_strategy="steps", eval_steps=3,
        max_steps=6, probe=probe,
    )  # fmt: skip
    assert [(f.sentinel, f.step, f.value) for f in trainer.sentinels.findings] == [("kl", 6, 31.0), ("length", 6, 2.5)]
    assert "31 nats a text away from its start" in told[0]
    assert "25 tokens on average, 10 at the start: the loss rewards length" in told[1]


def test_a_sentinel_ends_the_run_with_a_checkpoint_and_exit_code_3(tmp_path: Path) -> None:
    config = SentinelConfig(tie_steps=2, stop=True)
    with pytest.raises(ThresholdError, match="stopped after step 2: for 2 steps both sides") as stopped:
        watched(load("dpo"), tmp_path, config, learning_rate=0.0)
    assert stopped.value.exit_code == 3
    assert (tmp_path / "checkpoint-2").is_dir()
    # The same command again does not go on past it, unless it is told to.
    resume = tmp_path / "checkpoint-2"
    with pytest.raises(ThresholdError, match=r"stopped this run: step 2: for 2 steps.*sentinels.stop=false"):
        watched(load("dpo"), tmp_path, config, learning_rate=0.0, resume=resume)
    assert not (tmp_path / "checkpoint-3").exists()
    on = SentinelConfig(tie_steps=2)
    assert watched(load("dpo"), tmp_path, on, learning_rate=0.0, resume=resume)[0].state.global_step == 6


def test_what_was_told_before_a_resume_is_not_told_again() -> None:
    told: list[str] = []
    sentinels = Sentinels(SentinelConfig(tie_steps=2), told.append)
    history = [{"step": n, "learning_rate": 0.1, "rewards/ties": 1.0} for n in (1, 2)]
    sentinels.begin(records=4, history=history)
    assert [f.sentinel for f in sentinels.findings] == ["ties"]
    assert sentinels.look(3, {"learning_rate": 0.1, "rewards/ties": 1.0}) == {}
    assert told == []


def test_figures_that_are_no_numbers_are_passed_over() -> None:
    sentinels = Sentinels(SentinelConfig())
    assert sentinels.look(1, {"learning_rate": 1.0, "rewards/margins": float("nan"), "eval_kl": "inf"}) == {}  # type: ignore[dict-item]


# ---- numbers that are not finite


@dataclass(frozen=True, kw_only=True)
class Overflow:
    """A loss that is fine until a step, and then not, or whose gradient alone is not."""

    needs: ClassVar[Any] = load("simpo").needs
    key: int
    gradient: bool = False

    def __call__(self, logps: Any) -> LossOutput:
        value = logps.chosen.sum - logps.rejected.sum
        if self.gradient:  # sqrt(0): 0, with an infinite slope
            return LossOutput(loss=value + (logps.chosen.sum - logps.chosen.sum).sqrt() * (logps.ids == self.key))
        return LossOutput(loss=torch.where(logps.ids == self.key, value / 0.0, value))

    def at_reference(self, logps: Any) -> None:
        return None


def poison(model: Any, layer: str) -> Tensor:
    with torch.no_grad():
        weight: Tensor = dict(model.named_parameters())[layer]
        weight[0, 0] = float("inf")
        return weight


def test_a_loss_that_is_not_finite_leaves_its_batch_to_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"records pairs-11\); the log-probs are finite.*prefopt replay") as error:
        watched(Overflow(key=PAIRS[11].stable_int), tmp_path, SentinelConfig())
    folder = tmp_path / "not-finite-1"
    assert str(folder) in str(error.value)
    assert sorted(p.name for p in folder.iterdir()) == ["batch.json", "batch.safetensors", "model"]
    kept = replaying.load(folder / "batch.json")
    assert [f.id for work in kept.works for f in work.facts] == [r.id for r in PAIRS]
    assert kept.step == 1
    rows = list(replaying.rows(kept.policy(tiny.model()), load("simpo"), kept))
    for record, chosen in zip(PAIRS, rows[::2], strict=True):
        expected = tiny.plain_logps(tiny.model(), record.prompt, record.completions[0]).sum().item()
        assert chosen["record"] == record.id
        assert chosen["completion"] == "chosen"
        assert chosen["policy"] == pytest.approx(expected, abs=1e-5)


def test_weights_that_are_not_finite_are_named_with_sides(tmp_path: Path) -> None:
    model = tiny.model()
    made = tiny.make(load("simpo"), PAIRS, tmp_path, model)
    poison(model, "model.layers.1.mlp.up_proj.weight")
    says = r"not finite is the log-prob of pairs-\d+ (chosen|rejected).*the weights model.layers.1.mlp.up_proj.weight"
    with pytest.raises(TrainingError, match=says):
        made.train()


def test_the_layer_where_it_begins_is_named() -> None:
    """Finite weights, but an activation that overflows."""
    model = tiny.model(dtype=torch.float32)
    made = tiny.make(load("simpo"), PAIRS, Path("unused"), model)
    work = next(iter(made.shares("train"))).work[0]
    assert replaying.first_not_finite(made.policy, [work]) is None
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.weight.fill_(3e38)
    found = replaying.first_not_finite(made.policy, [work])
    assert found == "model.layers.1.mlp.gate_proj is the first layer whose output is not finite"


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_reaches_no_weight(clip: float, tmp_path: Path) -> None:
    loss = Overflow(key=PAIRS[3].stable_int, gradient=True)
    made = tiny.make(loss, PAIRS, tmp_path, max_grad_norm=clip, max_steps=2)
    with pytest.raises(TrainingError, match=r"step 1: the loss is finite, but its gradient is nan in \d+ tensors"):
        made.train()
    assert tiny.apart(dict(made.model.named_parameters()), dict(tiny.model().named_parameters())) == 0.0


def test_a_kept_batch_that_is_none_is_refused(tmp_path: Path) -> None:
    for content in ("", "[]", "{}", '{"step": 1, "why": "", "layout": "tree", "works": []}', "[" * 100_000):
        (tmp_path / "batch.json").write_text(content)
        with pytest.raises(UserError, match="is not a batch that a run kept"):
            replaying.load(tmp_path)
    assert json.dumps(1)  # nothing of it was run
