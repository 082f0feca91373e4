"""What the losses are to each other: identities and limits, as data for the tests and for the catalogue page.

Each is checked on random batches in float64 against the plugins themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefopt.losses import load_class
from prefopt.plugin import Data, LossOutput
from prefopt.testing.numbers import build, call
from prefopt.testing.samples import Named, random_numbers
from prefopt.testing.views import (
    as_list,
    as_unpaired,
    margin,
    no_reference,
    paired_sum,
    pairs,
    replaced,
    same_length,
    swapped,
    uniform_statistic,
)

Sides = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Identity:
    """`sides(seed)` gives the two sides on a random batch; they differ by at most `tolerance`."""

    claim: str
    losses: tuple[str, ...]
    sides: Callable[[int], Sides]
    tolerance: float = 1e-9


def output(name: str, numbers: Named, **hyperparameters: Any) -> LossOutput:
    """What a loss of the menu returns on named numbers."""
    loss = load_class(name)(**hyperparameters)
    return call(loss, build(loss.needs, numbers))


def values(name: str, numbers: Named, **hyperparameters: Any) -> Tensor:
    """(B,) the values of a loss of the menu on named numbers."""
    return output(name, numbers, **hyperparameters).loss.detach()


# --- the table

IDENTITIES: list[Identity] = []


def _same(left: str, left_settings: dict[str, Any], right: str, right_settings: dict[str, Any] | None = None) -> None:
    """Two losses that agree on every batch of pairs at these settings; beta is that of each plugin unless given."""
    right_settings = right_settings or {}

    def sides(seed: int) -> Sides:
        numbers = pairs(seed)
        return values(left, numbers, **left_settings), values(right, numbers, **right_settings)

    claim = f"{_named(left, left_settings)} = {_named(right, right_settings)}"
    IDENTITIES.append(Identity(claim, (left, right), sides))


def _named(name: str, settings: dict[str, Any]) -> str:
    shown = ", ".join(f"{key}={getattr(value, 'value', value)}" for key, value in settings.items())
    return f"{name}({shown})" if shown else name


def _identity(claim: str, *losses: str, tolerance: float = 1e-9) -> Callable[[Callable[[int], Sides]], None]:
    def add(sides: Callable[[int], Sides]) -> None:
        IDENTITIES.append(Identity(claim, losses, sides, tolerance))

    return add


def _enum(name: str, field: str, value: str) -> Any:
    return type(getattr(load_class(name)(), field))(value)


B = {"beta": 0.3}
_same("cdpo", {"label_smoothing": 0.0}, "dpo")
_same("robust_dpo", {"label_smoothing": 0.0}, "dpo")
_same("gpo", {"f": _enum("gpo", "f", "logistic")}, "dpo")
_same("gpo", {"f": _enum("gpo", "f", "hinge")}, "hinge")
_same("f_dpo", {"divergence": _enum("f_dpo", "divergence", "reverse_kl")}, "dpo")
_same("r_dpo", {"alpha": 0.0}, "dpo")
_same("ld_dpo", {"alpha": 1.0}, "dpo")
_same("bdpo", {"lam": 1.0}, "dpo")
_same("dpop", {"lam": 0.0, **B}, "dpo", B)
_same("dpo_shift", {"lam": 1.0, **B}, "dpo", B)
_same("odpo", {"alpha": 0.0}, "dpo")
_same("focal_dpo", {"gamma": 0.0}, "dpo")
_same("irpo", {"alpha": 0.0}, "dpo")
_same("rpo_sft", {"eta": 0.0, **B}, "dpo", B)
_same("tdpo2", {"alpha": 0.0}, "dpo")
_same("tdpo1", {}, "tdpo2", {"alpha": 1.0})
_same("tr_dpo", B, "dpo", B)
_same("beta_dpo", {"alpha": 0.0, "keep": 1.0}, "dpo")
_same("rebel", {"eta": 0.5}, "distill_dpo", {"beta": 2.0})
_same("reward_aware_po", {"distance": _enum("reward_aware_po", "distance", "square"), **B}, "distill_dpo", B)
_same("cpo_simpo", {"alpha": 0.0, "beta": 2.0, "gamma_beta_ratio": 0.5}, "simpo", {})
_same("alpha_dpo", {"alpha": 0.0}, "simpo")
_same("alpha_po", {"alpha": 0.0, "beta": 2.0, "gamma": 1.0}, "simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5})
_same("mix", {"terms": {"dpo": 1.0, "sft": 0.7}}, "irpo", {"alpha": 0.7})
_same("mix", {"terms": {"cpo": 1.0, "sft": 0.7}, "options": {"cpo": {"alpha": 0.0}}}, "cpo", {"alpha": 0.7})


@_identity("f_dpo(alpha, alpha=1) = f_dpo(forward_kl)", "f_dpo")
def _(seed: int) -> Sides:
    alpha, forward = (_enum("f_dpo", "divergence", d) for d in ("alpha", "forward_kl"))
    return (
        values("f_dpo", pairs(seed), divergence=alpha, alpha=1.0),
        values("f_dpo", pairs(seed), divergence=forward),
    )


@_identity("f_dpo(alpha, alpha to 0) = dpo", "f_dpo", "dpo", tolerance=1e-6)
def _(seed: int) -> Sides:
    alpha = _enum("f_dpo", "divergence", "alpha")  # the error is beta alpha rho^2 / 2, here below 1e-7
    return values("f_dpo", pairs(seed), divergence=alpha, alpha=1e-9), values("dpo", pairs(seed))


@_identity("info_nca on two completions, one-hot target = dpo", "info_nca", "dpo")
def _(seed: int) -> Sides:
    return values("info_nca", as_list(pairs(seed)), alpha=1e-3, beta=0.1), values("dpo", pairs(seed))


@_identity("plackett_luce on two completions = dpo", "plackett_luce", "dpo")
def _(seed: int) -> Sides:
    return values("plackett_luce", as_list(pairs(seed))), values("dpo", pairs(seed))


@_identity("li_po on two completions scored 1 and 0 = (1/log 2 - 1/log 3) dpo", "li_po", "dpo")
def _(seed: int) -> Sides:
    scale = 1 / math.log(2) - 1 / math.log(3)
    return values("li_po", as_list(pairs(seed)), beta=0.1), scale * values("dpo", pairs(seed))


@_identity("nca_list on two completions, one-hot target = nca", "nca_list", "nca")
def _(seed: int) -> Sides:
    return values("nca_list", as_list(pairs(seed)), alpha=1e-3), values("nca", pairs(seed))


@_identity("odpo at a gap of 1 = dpo", "odpo", "dpo")
def _(seed: int) -> Sides:
    numbers = pairs(seed)
    return values("odpo", replaced(numbers, chosen_score=numbers["rejected_score"] + 1)), values("dpo", numbers)


@_identity("wpo where tokens are as likely as sum_v p_v^2 = dpo", "wpo", "dpo")
def _(seed: int) -> Sides:
    numbers = pairs(seed)
    aligned = replaced(
        numbers, chosen_log_sum_sq=numbers["chosen_token"], rejected_log_sum_sq=numbers["rejected_token"]
    )
    return values("wpo", aligned, beta=0.1), values("dpo", numbers)


@_identity("tdpo1 where the KL is 0 = dpo", "tdpo1", "dpo")
def _(seed: int) -> Sides:
    return values("tdpo1", uniform_statistic(pairs(seed), "kl", 0.0)), values("dpo", pairs(seed))


@_identity("minor_dpo where rho_l > 0 = dpo", "minor_dpo", "dpo")
def _(seed: int) -> Sides:
    numbers = pairs(seed)
    above = replaced(numbers, ref_rejected=numbers["rejected"] - 0.5)
    return values("minor_dpo", above), values("dpo", above)


@_identity("hypo where d_ref > 0 = dpo", "hypo", "dpo")
def _(seed: int) -> Sides:
    numbers = pairs(seed)
    agreeing = replaced(numbers, ref_chosen=numbers["ref_rejected"] + 0.5)
    return values("hypo", agreeing), values("dpo", agreeing)


@_identity("hypo where d_ref < 0 = cpo(alpha=0)", "hypo", "cpo")
def _(seed: int) -> Sides:
    numbers = pairs(seed)
    opposed = replaced(numbers, ref_chosen=numbers["ref_rejected"] - 0.5)
    return values("hypo", opposed), values("cpo", opposed, alpha=0.0)


@_identity("aot on one pair = dpo", "aot", "dpo")
def _(seed: int) -> Sides:
    one = {name: value[:1] for name, value in pairs(seed).items()}
    return values("aot", one, beta=0.1), values("dpo", one)


@_identity("aot_unpaired on one item of each label = dpo", "aot_unpaired", "dpo")
def _(seed: int) -> Sides:
    one = {name: value[:1] for name, value in pairs(seed).items()}
    return values("aot_unpaired", as_unpaired(one), beta=0.1).mean(), values("dpo", one).mean()


@_identity("sam_po at equal lengths = dpo", "sam_po", "dpo")
def _(seed: int) -> Sides:
    numbers = same_length(pairs(seed), 6)
    return values("sam_po", numbers), values("dpo", numbers)


@_identity(
    "dr_dpo(beta_prime to infinity) = batch mean of dpo, error Var(l) / (2 beta_prime)", "dr_dpo", "dpo", tolerance=1e-8
)
def _(seed: int) -> Sides:
    plain = values("dpo", pairs(seed))
    expected = plain.mean() - plain.var(correction=0) / (2 * 1e3)
    return values("dr_dpo", pairs(seed), beta_prime=1e3), expected.expand_as(plain)


@_identity("discopop_lrml where z < -40 tau = dpo", "discopop_lrml", "dpo")
def _(seed: int) -> Sides:
    numbers = pairs(seed)
    worse = replaced(numbers, chosen=numbers["chosen"] - 60)
    return values("discopop_lrml", worse), values("dpo", worse, beta=0.05)


@_identity("cdpo = dpo + epsilon beta Delta", "cdpo", "dpo")
def _(seed: int) -> Sides:
    return values("cdpo", pairs(seed)), values("dpo", pairs(seed)) + 0.1 * margin(pairs(seed), 0.1)


@_identity("robust_dpo = dpo - epsilon / (1 - 2 epsilon) beta Delta", "robust_dpo", "dpo")
def _(seed: int) -> Sides:
    return values("robust_dpo", pairs(seed)), values("dpo", pairs(seed)) - 0.1 / 0.8 * margin(pairs(seed), 0.1)


@_identity("mean of robust_dpo over flips at rate epsilon = dpo on clean labels", "robust_dpo", "dpo")
def _(seed: int) -> Sides:
    robust, flipped = values("robust_dpo", pairs(seed)), values("robust_dpo", swapped(pairs(seed)))
    return 0.9 * robust + 0.1 * flipped, values("dpo", pairs(seed))


def _label_gap(seed: int, epsilon: float) -> Named:
    """The pairs with a score gap of log((1 - epsilon) / epsilon): the log-odds of a smoothed label."""
    numbers = pairs(seed)
    return replaced(numbers, chosen_score=numbers["rejected_score"] + math.log((1 - epsilon) / epsilon))


@_identity("reward_aware_po(backward_kl) at the label's log-odds = cdpo - H(epsilon)", "reward_aware_po", "cdpo")
def _(seed: int) -> Sides:
    kl = values(
        "reward_aware_po", _label_gap(seed, 0.1), distance=_enum("reward_aware_po", "distance", "backward_kl"), beta=0.1
    )
    entropy = -0.1 * math.log(0.1) - 0.9 * math.log(0.9)
    return kl, values("cdpo", pairs(seed)) - entropy


@_identity("reward_aware_po(forward_kl) at the label's log-odds = exo", "reward_aware_po", "exo")
def _(seed: int) -> Sides:
    forward = _enum("reward_aware_po", "distance", "forward_kl")
    return (
        values("reward_aware_po", _label_gap(seed, 0.1), distance=forward, beta=0.1),
        values("exo", pairs(seed), label_smoothing=0.1),
    )


@_identity("gpo(square) = beta^2 ipo_sum(tau=beta/2)", "gpo", "ipo_sum")
def _(seed: int) -> Sides:
    square = _enum("gpo", "f", "square")
    return values("gpo", pairs(seed), f=square, beta=0.3), 0.3**2 * values("ipo_sum", pairs(seed), tau=0.15)


@_identity("ipo at lengths 1 = ipo_sum", "ipo", "ipo_sum")
def _(seed: int) -> Sides:
    return values("ipo", same_length(pairs(seed), 1)), values("ipo_sum", pairs(seed))


@_identity("chi_po's margin unclipped = dpo's plus beta (u_w - u_l)", "chi_po", "dpo")
def _(seed: int) -> Sides:
    chi = output("chi_po", pairs(seed), r_max=1e6, beta=0.1)
    numbers = pairs(seed)
    ratios = [(numbers[side] - numbers[f"ref_{side}"]).exp() for side in ("chosen", "rejected")]
    expected = torch.nn.functional.softplus(-margin(numbers, 0.1) - 0.1 * (ratios[0] - ratios[1]))
    return chi.loss, expected


@_identity("kto_zero, both items of a pair = apo_zero", "kto_zero", "apo_zero")
def _(seed: int) -> Sides:
    return paired_sum(values("kto_zero", as_unpaired(pairs(seed)))), values("apo_zero", pairs(seed))


@_identity("kto where the mismatched mean is below 0 = kto_zero", "kto", "kto_zero")
def _(seed: int) -> Sides:
    numbers = as_unpaired(pairs(seed))
    below = replaced(numbers, mismatched=numbers["completion"] - 9, ref_mismatched=numbers["completion"])
    return values("kto", below), values("kto_zero", numbers)


@_identity(
    "apo_down + 1 = apo_zero + 2 sigmoid(r_w) - sigmoid(r_l) + sigmoid(r_l - r_w), r = beta rho", "apo_down", "apo_zero"
)
def _(seed: int) -> Sides:
    numbers = pairs(seed)
    ratios = [0.1 * (numbers[side] - numbers[f"ref_{side}"]) for side in ("chosen", "rejected")]
    difference = values("apo_down", numbers) - values("apo_zero", numbers) + 1
    return difference, 2 * ratios[0].sigmoid() - ratios[1].sigmoid() + (ratios[1] - ratios[0]).sigmoid()


@_identity("bco where the mean reward is 0, both items of a pair = bco_pair", "bco", "bco_pair")
def _(seed: int) -> Sides:
    numbers = pairs(seed)
    balanced = replaced(numbers, rejected=numbers["ref_rejected"] - (numbers["chosen"] - numbers["ref_chosen"]))
    return paired_sum(values("bco", as_unpaired(balanced))), values("bco_pair", balanced)


@_identity("sppo = 2 (cal_dpo - dpo(beta=1))", "sppo", "cal_dpo", "dpo", tolerance=1e-6)
def _(seed: int) -> Sides:  # values near 5e5: 1e-6 is 2e-12 of them
    return values("sppo", pairs(seed)), 2 * (values("cal_dpo", pairs(seed)) - values("dpo", pairs(seed), beta=1.0))


@_identity("sppo_soft at a sure win = sppo", "sppo_soft", "sppo", tolerance=1e-6)
def _(seed: int) -> Sides:
    numbers = pairs(seed)
    return values("sppo_soft", replaced(numbers, chosen_score=numbers["rejected_score"] + 100)), values("sppo", numbers)


@_identity("rebel and distill_dpo at scale 1, target 1/(2 tau) = ipo_sum(tau)", "rebel", "distill_dpo", "ipo_sum")
def _(seed: int) -> Sides:
    numbers = pairs(seed)
    target = replaced(numbers, chosen_score=numbers["rejected_score"] + 1 / (2 * 0.1))
    both = torch.stack([values("rebel", target), values("distill_dpo", target)])
    return both, values("ipo_sum", numbers).expand_as(both)


@_identity("cpo(alpha=0) where the reference likes both sides equally = dpo", "cpo", "dpo")
def _(seed: int) -> Sides:
    numbers = pairs(seed)
    fair = replaced(numbers, ref_chosen=numbers["ref_rejected"])
    return values("cpo", fair, alpha=0.0), values("dpo", fair)


@_identity("simpo(gamma_beta_ratio=0) at n tokens = cpo(beta/n, alpha=0)", "simpo", "cpo")
def _(seed: int) -> Sides:
    numbers = same_length(pairs(seed), 4)
    return values("simpo", numbers, gamma_beta_ratio=0.0), values("cpo", numbers, beta=2.0 / 4, alpha=0.0)


@_identity("dpo_norm with a zero reference = simpo(gamma_beta_ratio=0)", "dpo_norm", "simpo")
def _(seed: int) -> Sides:
    numbers = no_reference(pairs(seed))
    return values("dpo_norm", numbers, beta=2.0), values("simpo", numbers, gamma_beta_ratio=0.0)


@_identity("alpha_po(alpha to 0) = simpo", "alpha_po", "simpo", tolerance=1e-6)
def _(seed: int) -> Sides:
    return values("alpha_po", pairs(seed), alpha=1e-8, beta=2.0, gamma=1.0), values("simpo", pairs(seed))


@_identity("difference of alpha_po's rewards at alpha=-1 = -simper", "alpha_po", "simper")
def _(seed: int) -> Sides:
    power = output("alpha_po", pairs(seed), alpha=-1.0, beta=1.0)
    assert power.chosen_reward is not None
    assert power.rejected_reward is not None
    return power.rejected_reward - power.chosen_reward, values("simper", pairs(seed))


@_identity(
    "simpo/beta, beta to infinity = re_po, error at most log 2 / beta", "simpo", "re_po", tolerance=math.log(2) / 1e6
)
def _(seed: int) -> Sides:
    sharp = values("simpo", pairs(seed), beta=1e6, gamma_beta_ratio=0.6) / 1e6
    return sharp, values("re_po", pairs(seed))


@_identity("slic_hf(lam=0) at lengths 1 = re_po(gamma=delta)", "slic_hf", "re_po")
def _(seed: int) -> Sides:
    numbers = same_length(pairs(seed), 1)
    return values("slic_hf", numbers, lam=0.0), values("re_po", numbers, gamma=1.0)


@_identity("rrhf on two completions less the likelihood of the best = re_po(gamma=0)", "rrhf", "re_po")
def _(seed: int) -> Sides:
    numbers = pairs(seed)
    return values("rrhf", as_list(numbers)) + numbers["chosen"], values("re_po", numbers, gamma=0.0)


@_identity("pro(beta=0) on two completions a score of 1 apart = simpo(beta=1, gamma_beta_ratio=0)", "pro", "simpo")
def _(seed: int) -> Sides:
    return (
        values("pro", as_list(pairs(seed)), beta=0.0),
        values("simpo", pairs(seed), beta=1.0, gamma_beta_ratio=0.0),
    )


@_identity("orpo(lam=0) = sft", "orpo", "sft")
def _(seed: int) -> Sides:
    numbers = pairs(seed)
    demonstrations = {name: numbers[name] for name in ("chosen", "chosen_num_tokens")}
    return values("orpo", numbers, lam=0.0), values("sft", demonstrations)


@_identity("unlikelihood(alpha=0) = n sft", "unlikelihood", "sft")
def _(seed: int) -> Sides:
    numbers = pairs(seed)
    demonstrations = {name: numbers[name] for name in ("chosen", "chosen_num_tokens")}
    return values("unlikelihood", numbers, alpha=0.0), values("sft", demonstrations) * numbers["chosen_num_tokens"]


@_identity("csft = sft of every completion", "csft", "sft")
def _(seed: int) -> Sides:
    numbers = as_unpaired(pairs(seed))
    demonstrations = {"chosen": numbers["completion"], "chosen_num_tokens": numbers["num_tokens"]}
    return values("csft", numbers), values("sft", demonstrations)


@_identity("sft_token_mean at equal lengths = sft", "sft_token_mean", "sft")
def _(seed: int) -> Sides:
    numbers = same_length(pairs(seed), 5)
    demonstrations = {name: numbers[name] for name in ("chosen", "chosen_num_tokens")}
    return values("sft_token_mean", demonstrations), values("sft", demonstrations)


@_identity("dft where every token has probability 1/2 = sft / 2", "dft", "sft")
def _(seed: int) -> Sides:
    numbers = random_numbers(Data.DEMONSTRATIONS, seed=seed)
    token = torch.where(numbers["chosen_token"] != 0, -math.log(2), 0.0).double()
    even = {"chosen_token": token, "chosen_num_tokens": numbers["chosen_num_tokens"]}
    return values("dft", even), values("sft", even) / 2


@_identity("simnpo at lengths 1 = npo with a zero reference", "simnpo", "npo")
def _(seed: int) -> Sides:
    numbers = same_length(no_reference(pairs(seed)), 1)
    return values("simnpo", numbers, beta=0.1), values("npo", numbers)


@_identity("amapo on one pair = simpo(gamma_beta_ratio=0)", "amapo", "simpo")
def _(seed: int) -> Sides:
    one = {name: value[:1] for name, value in pairs(seed).items()}
    return values("amapo", one), values("simpo", one, beta=3.0, gamma_beta_ratio=0.0)


@_identity("mallows_dpo where phi = 1 = dpo", "mallows_dpo", "dpo")
def _(seed: int) -> Sides:
    entropy = math.log(100) * math.exp(-1 / 0.29)
    sure = uniform_statistic(pairs(seed), "ref_entropy", entropy)
    return values("mallows_dpo", sure, vocab_size=100), values("dpo", sure)


@_identity("rainbow_po(alpha=0) where phi = 1 = simpo", "rainbow_po", "simpo")
def _(seed: int) -> Sides:
    entropy = math.log(100) * math.exp(-1 / 0.29)
    sure = uniform_statistic(pairs(seed), "ref_entropy", entropy)
    plain = values("simpo", sure, gamma_beta_ratio=0.3)
    return values("rainbow_po", sure, vocab_size=100, alpha=0.0, beta=2.0, gamma=0.3), plain


def _triples(seed: int) -> Named:
    """The pairs as lists of three, with a gold completion of log-prob -1 in front."""
    numbers = as_list(pairs(seed))
    gold = torch.full_like(numbers["completions"][:, :1], -1.0)
    return {
        "completions": torch.cat([gold, numbers["completions"]], -1),
        "num_tokens": torch.cat([torch.ones_like(gold).long(), numbers["num_tokens"]], -1),
        "scores": torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64).repeat(len(gold), 1),
    }


@_identity("tpo(alpha=0) = cpo(alpha=0)", "tpo", "cpo")
def _(seed: int) -> Sides:
    return values("tpo", _triples(seed), alpha=0.0, beta=0.1), values("cpo", pairs(seed), alpha=0.0)


@_identity("tpo_l(alpha=0) = alpha_po(alpha=0)", "tpo_l", "alpha_po")
def _(seed: int) -> Sides:
    plain = values("alpha_po", pairs(seed), alpha=0.0, beta=2.0, gamma=0.5)
    return values("tpo_l", _triples(seed), alpha=0.0, beta=2.0, gamma=0.5), plain
