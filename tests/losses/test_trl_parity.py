"""The same numbers as TRL 1.16, on one frozen batch, for every loss that both have.

TRL's own loss code runs on a stand-in for the model that returns these log-probs. Where we differ on purpose, the test
says by which formula.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.losses.f_dpo import Divergence
from prefopt.losses.registry import load
from prefopt.testing.numbers import value_of
from prefopt.testing.samples import cast, declared

trl = pytest.importorskip("trl", reason="the peers extra is not installed")

PROMPT, TOKENS, PAIRS = 3, 6, 5


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Five frozen pairs: lengths 1 to 6, per-token log-probs of policy and reference, and log sum_v p_v^2."""
    generator = torch.Generator().manual_seed(20261122)
    numbers: dict[str, Tensor] = {"ids": torch.arange(PAIRS)}
    for side, lengths in (("chosen", [6, 2, 4, 1, 3]), ("rejected", [2, 5, 4, 3, 6])):
        inside = torch.arange(TOKENS) < torch.tensor(lengths).unsqueeze(-1)
        numbers[f"{side}_num_tokens"] = torch.tensor(lengths)
        for name, scale in ((f"{side}_token", -2.0), (f"ref_{side}_token", -2.0), (f"{side}_log_sum_sq", -1.0)):
            numbers[name] = scale * torch.rand(inside.shape, generator=generator, dtype=torch.float64) * inside
        numbers[side] = numbers[f"{side}_token"].sum(-1)
        numbers[f"ref_{side}"] = numbers[f"ref_{side}_token"].sum(-1)
    return numbers


def ours(name: str, numbers: dict[str, Tensor], **settings: Any) -> float:
    loss = load(name, **settings)
    return float(value_of(loss, declared(loss.needs, numbers)).mean())


def in_sequence(numbers: dict[str, Tensor], suffix: str, *, ref: bool = False) -> Tensor:
    """(2B, L - 1) a per-token figure where TRL has it: chosen rows, then rejected rows, 0 on the prompt."""
    prefix = "ref_" if ref else ""
    rows = torch.cat([numbers[f"{prefix}{side}_{suffix}"] for side in ("chosen", "rejected")])
    return torch.nn.functional.pad(rows, (PROMPT - 1, 0))


class Answers(torch.nn.Module):
    """Stands in for a model: gives the frozen figures to whoever calls it."""

    is_gradient_checkpointing = False

    def __init__(self, numbers: dict[str, Tensor], *, ref: bool = False) -> None:
        super().__init__()
        self.eval()
        log_probs = in_sequence(numbers, "token", ref=ref)
        zero = torch.zeros_like(log_probs)
        self.outputs = SimpleNamespace(
            log_probs=log_probs,
            log_sum_sq_probs=in_sequence(numbers, "log_sum_sq"),
            entropy=zero,
            mean_logits=zero,
            is_top1=zero.bool(),
        )

    def forward(self, **kwargs: Any) -> Any:
        return self.outputs


def trl_dpo(numbers: dict[str, Tensor], loss_type: str | list[str], **settings: Any) -> float:
    """TRL's DPOTrainer on the batch."""
    from trl import DPOTrainer

    if settings.get("f_divergence_type") == "alpha_divergence":
        numbers = cast(numbers, torch.float32)  # this branch of theirs knows no float64
    types = [loss_type] if isinstance(loss_type, str) else loss_type
    options = {
        "beta": 0.1,
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "use_weighting": False,
        "loss_weights": [1.0] * len(types),
    } | settings
    trainer = SimpleNamespace(
        model=Answers(numbers),
        ref_model=Answers(numbers, ref=True),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        args=SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
        loss_types=types,
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        **options,
    )
    lengths = torch.cat([numbers[f"{side}_num_tokens"] for side in ("chosen", "rejected")])
    place = torch.arange(PROMPT + TOKENS)
    mask = ((place >= PROMPT) & (place < PROMPT + lengths.unsqueeze(-1))).long()
    inputs = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    return float(DPOTrainer._compute_loss(trainer, trainer.model, inputs, return_outputs=False))


SAME: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("dpo", {}, "sigmoid", {}),
    ("hinge", {"beta": 0.7}, "hinge", {"beta": 0.7}),
    ("ipo", {"tau": 0.3}, "ipo", {"beta": 0.3}),
    ("exo", {}, "exo_pair", {"label_smoothing": 1e-3}),
    ("nca", {"beta": 0.1}, "nca_pair", {}),
    ("robust_dpo", {}, "robust", {"label_smoothing": 0.1}),
    ("bco_pair", {}, "bco_pair", {}),
    ("sppo", {"beta": 0.2}, "sppo_hard", {"beta": 0.2}),
    ("aot", {"beta": 0.1}, "aot", {}),
    ("apo_zero", {}, "apo_zero", {}),
    ("apo_down", {}, "apo_down", {}),
    ("discopop_lrml", {"beta": 0.1}, "discopop", {}),
    ("dpo_norm", {"beta": 0.7}, "sigmoid_norm", {"beta": 0.7}),
    ("ld_dpo", {"alpha": 0.3}, "sigmoid", {"ld_alpha": 0.3}),
    ("f_dpo", {"divergence": Divergence.FORWARD_KL}, "sigmoid", {"f_divergence_type": "forward_kl"}),
    ("f_dpo", {"divergence": Divergence.JENSEN_SHANNON}, "sigmoid", {"f_divergence_type": "js_divergence"}),
    (
        "f_dpo",
        {"divergence": Divergence.ALPHA, "alpha": 0.7},
        "sigmoid",
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
    ),
    ("tr_dpo", {"beta": 0.1}, "sigmoid", {}),  # the moving reference is not in the loss
]


@pytest.mark.parametrize(("name", "settings", "loss_type", "trl_settings"), SAME)
def test_same_as_dpo_trainer(
    batch: dict[str, Tensor], name: str, settings: dict[str, Any], loss_type: str, trl_settings: dict[str, Any]
) -> None:
    assert ours(name, batch, **settings) == pytest.approx(trl_dpo(batch, loss_type, **trl_settings), abs=1e-6)


def test_every_loss_type_of_dpo_trainer_has_its_counterpart() -> None:
    """Read from TRL's own configuration, so that a loss that it adds is noticed."""
    from trl import DPOConfig

    field = next(f for f in dataclasses.fields(DPOConfig) if f.name == "loss_type")
    offered = set(re.findall(r"`'(\w+)'`", field.metadata["help"]))
    assert offered == {loss_type for _, _, loss_type, _ in SAME} | {"aot_unpaired", "sft"}


def as_items(numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    """The pairs as single items, desirable first."""
    joined = {
        "completion": torch.cat([numbers["chosen"], numbers["rejected"]]),
        "ref_completion": torch.cat([numbers["ref_chosen"], numbers["ref_rejected"]]),
        "num_tokens": torch.cat([numbers["chosen_num_tokens"], numbers["rejected_num_tokens"]]),
    }
    return joined | {"desirable": torch.arange(2 * PAIRS) < PAIRS, "ids": torch.arange(2 * PAIRS)}


def test_aot_unpaired_is_the_same_at_equal_counts(batch: dict[str, Tensor]) -> None:
    assert ours("aot_unpaired", as_items(batch), beta=0.1) == pytest.approx(trl_dpo(batch, "aot_unpaired"), abs=1e-6)


def test_sft_is_a_mean_over_the_batch_tokens_there(batch: dict[str, Tensor]) -> None:
    demonstrations = {key: value for key, value in batch.items() if key.startswith("chosen") or key == "ids"}
    demonstrations = {key: value for key, value in demonstrations.items() if "log_sum_sq" not in key}
    assert ours("sft_token_mean", demonstrations) == pytest.approx(trl_dpo(batch, "sft"), abs=1e-6)
    # ours weighs each demonstration alike: theirs is the mean of n_i / mean(n) times ours
    per_example = -batch["chosen"] / batch["chosen_num_tokens"]
    assert ours("sft", demonstrations) == pytest.approx(float(per_example.mean()))
    weights = batch["chosen_num_tokens"] / batch["chosen_num_tokens"].double().mean()
    assert trl_dpo(batch, "sft") == pytest.approx(float((weights * per_example).mean()), abs=1e-6)


def test_irpo_differs_by_the_mean_of_its_likelihood_term(batch: dict[str, Tensor]) -> None:
    theirs = trl_dpo(batch, ["sigmoid", "sft"], loss_weights=[1.0, 0.5])
    per_example = float((-batch["chosen"] / batch["chosen_num_tokens"]).mean())
    per_token = float(-batch["chosen"].sum() / batch["chosen_num_tokens"].sum())
    assert ours("irpo", batch, alpha=0.5) - theirs == pytest.approx(0.5 * (per_example - per_token), abs=1e-6)


def test_mix_is_the_weighted_sum_of_loss_types(batch: dict[str, Tensor]) -> None:
    theirs = trl_dpo(batch, ["sigmoid", "bco_pair"], loss_weights=[0.8, 0.2])
    assert ours("mix", batch, terms={"dpo": 0.8, "bco_pair": 0.2}) == pytest.approx(theirs, abs=1e-6)


def test_wpo_differs_by_the_min(batch: dict[str, Tensor]) -> None:
    """Theirs is w_w w_l l(z), ours min(1, w_w w_l) l(z)."""
    theirs = trl_dpo(batch, "sigmoid", use_weighting=True)
    aligned = [
        (batch[f"{side}_token"] - batch[f"{side}_log_sum_sq"]).sum(-1) / batch[f"{side}_num_tokens"]
        for side in ("chosen", "rejected")
    ]
    weight = (aligned[0] + aligned[1]).exp()
    z = 0.1 * (batch["chosen"] - batch["ref_chosen"] - batch["rejected"] + batch["ref_rejected"])
    plain = torch.log1p(torch.exp(-z))
    assert theirs == pytest.approx(float((weight * plain).mean()), abs=1e-6)
    assert ours("wpo", batch, beta=0.1) == pytest.approx(float((weight.clamp(max=1) * plain).mean()), abs=1e-6)


def test_cdpo_has_no_loss_type_of_its_own_there(batch: dict[str, Tensor]) -> None:
    """`robust` is cdpo's terms with a minus: theirs = (cdpo - 2 epsilon l(-z)) / (1 - 2 epsilon)."""
    z = 0.1 * (batch["chosen"] - batch["ref_chosen"] - batch["rejected"] + batch["ref_rejected"])
    flipped = float(torch.log1p(torch.exp(z)).mean())
    theirs = trl_dpo(batch, "robust", label_smoothing=0.1)
    assert (ours("cdpo", batch) - 2 * 0.1 * flipped) / 0.8 == pytest.approx(theirs, abs=1e-6)


# --- KTO


def trl_kto(items: dict[str, Tensor], mismatched: tuple[Tensor, Tensor], loss_type: str, **settings: Any) -> float:
    from trl import KTOTrainer

    size = len(items["ids"])
    one_token = items["completion"].unsqueeze(-1)  # its sum is all that the loss reads
    outputs = SimpleNamespace(
        log_probs=one_token, entropy=torch.zeros_like(one_token), mean_logits=torch.zeros_like(one_token)
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x),
        _compute_kl_logps=lambda model, batch: mismatched[0],
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=loss_type == "kto",
        loss_type=loss_type,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        **({"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0} | settings),
    )
    inputs = {
        "input_ids": torch.ones(size, 2, dtype=torch.int64),
        "attention_mask": torch.ones(size, 2),
        "completion_mask": torch.ones(size, 2, dtype=torch.int64),
        "label": items["desirable"],
        "ref_logps": items["ref_completion"],
        "ref_KL_logps": mismatched[1],
    }
    model = lambda **kwargs: outputs  # noqa: E731
    return float(KTOTrainer._compute_loss(trainer, model, inputs, return_outputs=False))


@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0])
def test_kto(batch: dict[str, Tensor], shift: float) -> None:
    items = as_items(batch)
    mismatched = (items["completion"].flip(0) + shift, items["ref_completion"].flip(0))
    numbers = items | {"mismatched": mismatched[0], "ref_mismatched": mismatched[1]}
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
    expected = trl_kto(items, mismatched, "kto", **weights)
    assert ours("kto", numbers, **weights) == pytest.approx(expected, abs=1e-6)


def test_kto_zero_is_their_apo_zero_unpaired(batch: dict[str, Tensor]) -> None:
    items = as_items(batch)
    nothing = (torch.zeros(2 * PAIRS), torch.zeros(2 * PAIRS))
    assert ours("kto_zero", items) == pytest.approx(trl_kto(items, nothing, "apo_zero_unpaired"), abs=1e-6)


# --- ORPO, CPO, SimPO, AlphaPO: their pure functions of log-probs; the likelihood term is added by the formula


def mean_logps(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return batch["chosen"] / batch["chosen_num_tokens"], batch["rejected"] / batch["rejected_num_tokens"]


def test_orpo(batch: dict[str, Tensor]) -> None:
    """The odds term is theirs; our likelihood is per example and without the prompt, theirs per micro-batch with it."""
    from trl.experimental.orpo import ORPOTrainer

    stub = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    chosen, rejected = mean_logps(batch)
    odds, *_ = ORPOTrainer.odds_ratio_loss(stub, chosen, rejected)
    assert ours("orpo", batch, lam=0.3) == pytest.approx(float((-chosen - odds).mean()), abs=1e-6)


def trl_cpo(chosen: Tensor, rejected: Tensor, loss_type: str, **settings: Any) -> float:
    from trl.experimental.cpo import CPOTrainer

    options = {"beta": 0.1, "alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.5} | settings
    stub = SimpleNamespace(loss_type=loss_type, accelerator=SimpleNamespace(device="cpu"), **options)
    losses, *_ = CPOTrainer.cpo_loss(stub, chosen, rejected)
    return float(losses.mean())


def test_cpo(batch: dict[str, Tensor]) -> None:
    contrast = trl_cpo(batch["chosen"], batch["rejected"], "sigmoid")
    likelihood = float(-mean_logps(batch)[0].mean())
    assert ours("cpo", batch, alpha=0.5) == pytest.approx(contrast + 0.5 * likelihood, abs=1e-6)


def test_simpo_and_cpo_simpo(batch: dict[str, Tensor]) -> None:
    """Their gamma is absolute: gamma_beta_ratio * beta."""
    theirs = trl_cpo(*mean_logps(batch), "simpo", beta=2.0, simpo_gamma=1.0)
    assert ours("simpo", batch, beta=2.0, gamma_beta_ratio=0.5) == pytest.approx(theirs, abs=1e-6)
    likelihood = float(-mean_logps(batch)[0].mean())
    theirs = trl_cpo(*mean_logps(batch), "simpo", beta=10.0, simpo_gamma=5.4) + 0.05 * likelihood
    assert ours("cpo_simpo", batch) == pytest.approx(theirs, abs=1e-6)


def test_alpha_po(batch: dict[str, Tensor]) -> None:
    theirs = trl_cpo(*mean_logps(batch), "simpo", beta=2.5, alpha=0.25, simpo_gamma=0.1)
    assert ours("alpha_po", batch) == pytest.approx(theirs, abs=1e-6)


# --- TPO and DFT, on logits whose log-softmax is known


def logits_with(token_logps: Tensor) -> Tensor:
    """(B, L, 2) logits under which token 1 has these log-probs."""
    return torch.stack([torch.log(-torch.expm1(token_logps)), token_logps], -1)


def sequences(sides: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, ids and completion mask of completions behind a prompt of one token."""
    tokens = torch.cat([token for token, _ in sides])
    lengths = torch.cat([length for _, length in sides])
    mask = torch.nn.functional.pad((torch.arange(TOKENS) < lengths.unsqueeze(-1)).long(), (1, 0))
    logits = logits_with(torch.where(tokens < 0, tokens, -0.5))
    return torch.nn.functional.pad(logits, (0, 0, 0, 1)), torch.ones_like(mask), mask


@pytest.mark.parametrize(("name", "loss_type"), [("tpo", "sigmoid"), ("tpo_l", "tpo-l")])
def test_tpo(batch: dict[str, Tensor], name: str, loss_type: str) -> None:
    """Their likelihood is the mean over all gold tokens, ours over each gold completion's own: equal here."""
    from trl.experimental.tpo import TPOTrainer

    gold = (torch.full((PAIRS, TOKENS), -0.25, dtype=torch.float64), torch.full((PAIRS,), TOKENS))
    sides = [(batch[f"{s}_token"], batch[f"{s}_num_tokens"]) for s in ("chosen", "rejected")] + [gold]
    logits, ids, mask = sequences(sides)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        loss_type=loss_type,
        label_smoothing=0.0,
        beta=0.5,
        tpo_alpha=0.7,
        tpo_l_gamma=0.5,
    )
    inputs = {"input_ids": ids, "completion_mask": mask, "attention_mask": torch.ones_like(mask)}
    theirs = TPOTrainer._compute_loss(trainer, lambda **kw: SimpleNamespace(logits=logits), inputs, False)
    numbers = {
        "completions": torch.stack([gold[0].sum(-1), batch["chosen"], batch["rejected"]], -1),
        "num_tokens": torch.stack([gold[1], batch["chosen_num_tokens"], batch["rejected_num_tokens"]], -1),
        "scores": torch.tensor([[2.0, 1.0, 0.0]]).repeat(PAIRS, 1).double(),
        "ids": torch.arange(PAIRS),
    }
    assert ours(name, numbers, beta=0.5, alpha=0.7) == pytest.approx(float(theirs), abs=1e-6)


def test_dft(batch: dict[str, Tensor]) -> None:
    """Theirs is a mean over the batch's tokens: ours weighted by n_i / mean(n)."""
    from trl import SFTTrainer

    one_side = {name: value for name, value in batch.items() if not name.startswith(("rejected", "ref_"))}
    inside = torch.arange(TOKENS) < batch["chosen_num_tokens"].unsqueeze(-1)
    zero = torch.zeros_like(batch["chosen_token"])
    outputs = SimpleNamespace(log_probs=batch["chosen_token"], label_mask=inside, entropy=zero, is_top1=zero.bool())
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(parallelism_config=None, num_processes=1, gather_for_metrics=lambda x: x),
        args=SimpleNamespace(loss_type="dft", average_tokens_across_devices=False),
        aux_loss_enabled=False,
        compute_loss_func=None,
        label_smoother=None,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    theirs = SFTTrainer.compute_loss(trainer, lambda **kwargs: outputs, {"labels": None})
    loss = load("dft")
    values = value_of(loss, declared(loss.needs, {k: v for k, v in one_side.items() if "log_sum_sq" not in k}))
    weights = batch["chosen_num_tokens"] / batch["chosen_num_tokens"].double().mean()
    assert float((weights * values).mean()) == pytest.approx(float(theirs), abs=1e-6)
