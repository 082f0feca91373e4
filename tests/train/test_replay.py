"""A kept batch again: under other losses, in the run's precision, and its gradient."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from prefopt.errors import TrainingError, UserError
from prefopt.losses.registry import load, loss_class, names
from prefopt.plugin import Data, LossOutput
from prefopt.train import BatchConfig, replay
from tests.train import tiny

PAIRS = tiny.records(Data.PAIRS, 8)


def kept(loss: Any, data: Any, folder: Path, policy: Any = None, **batch: Any) -> tuple[Any, replay.Kept]:
    """A trainer, and the first batch of its run as `replay` keeps it."""
    made = tiny.make(loss, data, folder / "run", policy, batch=BatchConfig(records=8, **batch), max_steps=1)
    (share,) = made.shares("train")
    (folder / "kept").mkdir()
    replay.save(folder / "kept", replay.Kept(1, "", share.work, made.step.state, made.layout.layout, None))
    return made, replay.load(folder / "kept")


@pytest.mark.parametrize(
    ("run", "other", "lacks"),
    [
        ("dpo", "kto", "completions of another prompt"),
        ("dpo", "bco", "the loss's running state"),
        ("simpo", "dpo", "log-probs of the reference"),
        ("sft", "simpo", "every completion of a record"),
        ("dpo", "sam_po", "the reference's log-probs of tokens"),
    ],
)
def test_a_loss_that_needs_what_the_batch_has_not_is_refused(run: str, other: str, lacks: str, tmp_path: Path) -> None:
    batch = kept(load(run), PAIRS, tmp_path)[1]
    with pytest.raises(UserError, match=lacks):
        list(replay.rows(batch.policy(tiny.model()), load(other), batch))
    assert list(replay.rows(batch.policy(tiny.model()), load(run), batch)), "the run's own"


def losses() -> dict[str, Any]:
    """All that have a default for every hyper-parameter."""
    classes = {name: loss_class(name) for name in names()}
    given = {
        n: [f for f in fields(c) if f.default is MISSING and f.default_factory is MISSING] for n, c in classes.items()
    }
    return {name: made() for name, made in classes.items() if not given[name]}


@pytest.mark.parametrize("kind", [kind for kind in Data if kind is not Data.PROMPTS])
def test_every_loss_takes_a_batch_or_refuses_it(kind: Data, tmp_path: Path) -> None:
    menu = losses()
    offline = {name: loss for name, loss in menu.items() if not loss.needs.on_policy}
    lists = next(name for name, loss in offline.items() if loss.needs.data is Data.LISTS and loss.needs.reference)
    own = {Data.PAIRS: "dpo", Data.UNPAIRED: "kto", Data.DEMONSTRATIONS: "sft", Data.LISTS: lists}[kind]
    batch = kept(menu[own], tiny.records(kind, 8), tmp_path)[1]
    model, refused = tiny.model(), []
    for name, loss in menu.items():
        try:
            assert list(replay.rows(batch.policy(model), loss, batch))
        except UserError as error:
            refused.append((name, str(error)))
    # The other kind of refusal is a loss's own, of numbers that it cannot take.
    says = ("needs what the batch does not have: ", "failed on the batch: ValueError: ")
    assert all(any(phrase in text for phrase in says) for _, text in refused), refused
    assert own not in dict(refused)


def test_a_loss_on_the_whole_batch_gets_all_of_its_parts(tmp_path: Path) -> None:
    batch = kept(load("kto"), PAIRS, tmp_path, max_tokens=32)[1]
    assert len(batch.works) > 1
    policy = tiny.model(seed=1)
    whole = tmp_path / "whole"
    whole.mkdir()
    one = kept(load("kto"), PAIRS, whole)[1]
    rows, together = (list(replay.rows(b.policy(policy), load("kto"), b)) for b in (batch, one))
    wanted = {(row["record"], row["completion"]): row["loss"] for row in together}
    assert {row["loss"] for row in rows if row["loss"] is not None} != set()
    for row in rows:
        assert row["loss"] == pytest.approx(wanted[row["record"], row["completion"]], abs=1e-6)


@dataclass(frozen=True, kw_only=True)
class Slope:
    """sqrt(0) on every pair: 0, with an infinite slope."""

    needs: ClassVar[Any] = load("simpo").needs

    def __call__(self, logps: Any) -> LossOutput:
        return LossOutput(loss=logps.rejected.sum + (logps.chosen.sum - logps.chosen.sum).sqrt())

    def at_reference(self, logps: Any) -> None:
        return None


def test_a_gradient_that_is_not_finite_is_not_finite_again(tmp_path: Path) -> None:
    slope: Any = Slope()
    made = tiny.make(slope, PAIRS, tmp_path, max_steps=1)
    with pytest.raises(TrainingError, match="its gradient is nan"):
        made.train()
    batch = replay.load(tmp_path / "not-finite-1")
    model = tiny.model()
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in replay.rows(batch.policy(model), slope, batch))
    found = replay.gradient_not_finite(batch.policy(model), slope, batch)
    assert found is not None
    assert found.startswith("the gradient of model.embed_tokens.weight is not finite")
    assert replay.gradient_not_finite(batch.policy(model), load("simpo"), batch) is None
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_what_overflows_in_half_precision_alone(precision: torch.dtype, tmp_path: Path) -> None:
    """80,000 is no number of float16, and one of bfloat16."""
    model = tiny.model(dtype=torch.float32)
    batch = kept(load("simpo"), PAIRS, tmp_path, tiny.model(dtype=torch.float32))[1]
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.fill_(8e3)
        model.model.layers[1].post_attention_layernorm.weight.fill_(10.0)
    assert all(abs(row["policy"]) < 1e9 for row in replay.rows(batch.policy(model), load("simpo"), batch))
    assert replay.first_not_finite(batch.policy(model), batch.works) is None
    found = replay.first_not_finite(batch.policy(model), batch.works, precision)
    if precision is torch.bfloat16:
        assert found is None
    else:
        assert found == "model.layers.1.mlp.up_proj is the first layer whose output is not finite"
