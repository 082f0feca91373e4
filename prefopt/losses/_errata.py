"""Mistakes and unstated conventions in papers and libraries, as data: where, what, why, with what effect, by how much.

`python -m benchmarks.errata` writes the entries of docs/errata.md from it. Every entry has an example: what the loss
here gives for it, and an expression of what the place gives. A test evaluates both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VERSION = 2  # rises when an entry is added, changed or withdrawn


@dataclass(frozen=True, kw_only=True)
class Erratum:
    """One entry of docs/errata.md; `name` is its anchor and never changes.

    Attributes:
        loss: the plugin that computes what is right.
        place: the paper, file or document with its version.
        says: what stands there.
        derivation: why something else is right.
        effect: what it does to a user.
        date: year-month-day of the last check.
        numbers: the example, by the names of `prefopt.testing.evaluate`.
        settings: hyper-parameters of the example.
        theirs: arithmetic whose value is what the place gives for the first record of the example.
    """

    name: str
    loss: str
    place: str
    says: str
    derivation: str
    effect: str
    date: str
    numbers: Mapping[str, Any]
    theirs: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def _pair(chosen: float, rejected: float, **more: Any) -> dict[str, Any]:
    """One pair with these log-ratios, on a reference of 0."""
    return {"chosen": [chosen], "rejected": [rejected], "ref_chosen": [0.0], "ref_rejected": [0.0], **more}


def _lengths(chosen: int, rejected: int) -> dict[str, Any]:
    return {"chosen_num_tokens": [chosen], "rejected_num_tokens": [rejected]}


TODAY = "2026-11-30"

# Another objective than the method's.
MISTAKES = (
    Erratum(
        name="r-dpo-sign",
        loss="r_dpo",
        place="oxRL 1.7.2, `oxrl/algs/rdpo.py`; several papers' tables of losses",
        says="-log σ(βΔ − α(n_w − n_l))",
        derivation="E[r − αn] − βKL has the optimum π_ref exp((r − αn)/β)/Z, so r = βρ + αn, and "
        "Bradley-Terry on r has a "
        "plus. A tabular world confirms it.",
        effect="Length is rewarded instead of penalised: a pair with a longer winner teaches more, not less.",
        date=TODAY,
        numbers=_pair(0.0, 0.0, **_lengths(30, 10)),
        theirs="log(1 + exp(0.05 * 20))",
    ),
    Erratum(
        name="robust-dpo-plus",
        loss="robust_dpo",
        place="oxRL 1.7.2, `oxrl/algs/robust_dpo.py`",
        says="[(1 − ε) ℓ(βΔ) + ε ℓ(−βΔ)] / (1 − 2ε)",
        derivation="The mean over label flips at rate ε must be DPO on clean labels, which needs −ε "
        "(2403.00409). "
        "With a plus it is cDPO divided by 1 − 2ε.",
        effect="No bias is removed, and the loss at policy = reference is not log 2.",
        date=TODAY,
        numbers=_pair(0.0, 0.0),
        settings={"label_smoothing": 0.2},
        theirs="log(2) / (1 - 2 * 0.2)",
    ),
    Erratum(
        name="f-dpo-forward-kl",
        loss="f_dpo",
        place="oxRL 1.7.2, `oxrl/algs/fdpo.py`, `forward_kl`",
        says="β[ρ_w − ρ_l + e^−ρ_w − e^−ρ_l]",
        derivation="f'(u) = −1/u, so the margin is β(e^−ρ_l − e^−ρ_w): the sign is turned, and the reverse KL "
        "is added.",
        effect="A chosen text that falls below its reference lowers the loss.",
        date=TODAY,
        numbers=_pair(-3.0, 0.0),
        settings={"divergence": "forward_kl"},
        theirs="log(1 + exp(-0.1 * (-3 + exp(3) - 1)))",
    ),
    Erratum(
        name="f-dpo-jensen-shannon",
        loss="f_dpo",
        place="oxRL 1.7.2, `oxrl/algs/fdpo.py`, `js_divergence` and `alpha_divergence`",
        says="βΔ − [softplus(ρ_w) − softplus(ρ_l)]; [e^−αρ_l − e^−αρ_w]/α",
        derivation="β multiplies the whole of f'(u_w) − f'(u_l).",
        effect="At the usual β of 0.1 the margin under Jensen-Shannon has the wrong sign; under alpha, β is ignored.",
        date=TODAY,
        numbers=_pair(2.0, 0.0),
        settings={"divergence": "jensen_shannon"},
        theirs="log(1 + exp(-(0.1 * 2 - log(1 + exp(2)) + log(2))))",
    ),
    Erratum(
        name="wpo-gradient-of-weight",
        loss="wpo",
        place="oxRL 1.7.2, `oxrl/algs/wpo.py`",
        says="Σ w ℓ(βΔ) / Σ w, w = exp(mean log π(y_w) + mean log π(y_l)), with gradient",
        derivation="The weight is a stop-gradient, has −log Σ_v p_v² at each token, and is not divided by its "
        "sum (Eq. 2).",
        effect="The loss can be lowered by making its texts unlikely; benchmarks/reproductions/oxrl_wpo.py shows a "
        "chosen text that is pushed down.",
        date=TODAY,
        numbers=_pair(-1.0, -1.0, **_lengths(1, 1), chosen_log_sum_sq=[[-0.5]], rejected_log_sum_sq=[[-0.5]]),
        theirs="log(1 + exp(0))",
    ),
    Erratum(
        name="kto-log-sigmoid",
        loss="kto",
        place="oxRL 1.7.2, `oxrl/algs/kto.py`",
        says="−λ log σ(±β(ρ − z0)), z0 a moving average from 0 of the chosen texts' own ρ",
        derivation="KTO's value is λ(1 − σ(·)), which saturates (2402.01306), and z0 is estimated on mismatched pairs.",
        effect="Records that the policy gets very wrong dominate, which KTO is made to avoid.",
        date=TODAY,
        numbers={
            "completion": [0.0, 0.0],
            "ref_completion": [0.0, 0.0],
            "desirable": [True, False],
            "mismatched": [0.0, 0.0],
            "ref_mismatched": [0.0, 0.0],
        },
        theirs="log(2)",
    ),
    Erratum(
        name="dpop-penalty-outside",
        loss="dpop",
        place="mlx-lm-lora 5.10.2, `trainer/dpo_trainer.py`, `dpop`",
        says="-log σ(βΔ) + λ max(0, −ρ_w)",
        derivation="The penalty stands inside the sigmoid and under β (2402.13228).",
        effect="Below the reference, the chosen side has a gradient of λ = 50 at every margin; DPOP's is at "
        "most β(1 + λ) = 5.1.",
        date=TODAY,
        numbers=_pair(-1.0, 0.0),
        settings={"beta": 0.1},
        theirs="log(1 + exp(0.1)) + 50",
    ),
    Erratum(
        name="ld-dpo-reference-tail",
        loss="ld_dpo",
        place="TRL 0.28.0, `trl/trainer/dpo_trainer.py` (right in 1.16); LLaMA-Factory",
        says="tokens past the shorter side count α under the policy, 1 under the reference",
        derivation="The decomposition is of log π(y|x), for both models: otherwise ρ is not 0 at policy = reference.",
        effect="The loss starts away from log 2, by the reference's likelihood of the longer side's tail.",
        date=TODAY,
        numbers={
            "chosen_token": [[-1.0, -1.0, -1.0]],
            "ref_chosen_token": [[-1.0, -1.0, -1.0]],
            "rejected_token": [[-1.0]],
            "ref_rejected_token": [[-1.0]],
        },
        theirs="log(1 + exp(-0.1 * (-2 + 3)))",
    ),
    Erratum(
        name="cdpo-option-ignored",
        loss="cdpo",
        place="TRL 0.29 to 1.16, `DPOConfig(loss_type='sigmoid', label_smoothing=ε)`",
        says="plain DPO: the option acts on `robust`, `exo_pair`, `aot` and `aot_unpaired` only",
        derivation="Up to 0.28 this was cDPO. The option is still accepted beside `sigmoid`, without a warning.",
        effect="A configuration of an older version trains DPO on labels that it believes to be noisy.",
        date=TODAY,
        numbers=_pair(20.0, 0.0),
        theirs="log(1 + exp(-2))",
    ),
    Erratum(
        name="epsilon-dpo-smoothing",
        loss="cdpo",
        place="ε-DPO, oddqueue/e-dpo `trainer.py` (268c7ad), as it inherits `label_smoothing`",
        says="-(1 − ε) log σ(z) − ε log σ(z)",
        derivation="A flipped label is −log σ(−z); both terms have +z, and their sum is −log σ(z).",
        effect="`label_smoothing` is accepted and changes nothing.",
        date=TODAY,
        numbers=_pair(1.0, 0.0),
        settings={"beta": 1.0, "label_smoothing": 0.3},
        theirs="log(1 + exp(-1))",
    ),
    Erratum(
        name="spo-no-minimum",
        loss="spo",
        place="oxRL 1.7.2, `oxrl/algs/spo.py`",
        says="−SiLU(βΔ), which its comment calls bounded",
        derivation="SiLU has its minimum, −0.278, at −1.278, so that SiLU of minus the margin stops a margin from "
        "growing, as the paper's abstract says; minus SiLU of the margin falls like the margin itself.",
        effect="Margins grow without bound, faster than under DPO: what the method is there to prevent.",
        date=TODAY,
        numbers=_pair(-1.0, -4.0, **_lengths(1, 1)),
        settings={"beta": 1.0, "gamma_beta_ratio": 0.0},
        theirs="-3 / (1 + exp(-3))",
    ),
    Erratum(
        name="sft-token-id-0",
        loss="sft",
        place="TRL 0.19.1 to 0.28.0, `DPOTrainer` with `rpo_alpha` or the loss type `sft`",
        says="cross_entropy(..., ignore_index=0) on labels that are 0 outside the completion",
        derivation="Token 0 is text for many tokenizers (`!` for GPT-2, Llama 3 and Qwen), and is left out "
        "with the padding.",
        effect="The likelihood term never learns that token. In the example, the last of four tokens has the id 0.",
        date=TODAY,
        numbers={"chosen": [-6.0], "chosen_num_tokens": [4]},
        theirs="(1 + 1 + 1) / 3",
    ),
    Erratum(
        name="focal-dpo-gamma-2",
        loss="focal_dpo",
        place="a third-party note on 2501.06645, γ = 2",
        says="−σ(z)^γ log σ(z) with γ = 2",
        derivation="dL/dz = p^γ(1 − p)(−γ log p − 1) at p = σ(z) is positive at step 0 for every γ above "
        "1/log 2 = 1.443.",
        effect="The first steps unlearn the preference; such values are refused here.",
        date="2026-11-29",
        numbers=_pair(0.0, 0.0),
        theirs="2 ** -2 * log(2)",
    ),
)

# The same method with something unstated: harmless to whoever knows, a factor or another strength to whoever does not.
CONVENTIONS = (
    Erratum(
        name="simpo-gamma-absolute",
        loss="simpo",
        place="TRL 0.9.6 to 1.16 (`simpo_gamma`), Liger-Kernel 0.8.5, oxRL 1.7.2",
        says="-log σ(β d̄ − γ)",
        derivation="The paper's table and the authors' scripts give γ/β (`gamma_beta_ratio`).",
        effect="A ratio of 0.5 typed in as γ is a margin β times too small.",
        date=TODAY,
        numbers={"chosen": [-0.8], "rejected": [-1.0], **_lengths(1, 1)},
        theirs="log(1 + exp(-(2 * 0.2 - 0.5)))",
    ),
    Erratum(
        name="alpha-po-gamma-absolute",
        loss="alpha_po",
        place="TRL 1.16, index of papers, the example for 2501.03884",
        says="`simpo_gamma=0.1` with β 2.5",
        derivation="0.1 is the ratio γ/β of the paper's Table 3 (authors' trainer, TRL pull request 3776).",
        effect="The margin is 2.5 times too small.",
        date="2026-11-29",
        numbers={"chosen": [-0.8], "rejected": [-1.0], **_lengths(1, 1)},
        theirs="log(1 + exp(-(2.5 * (exp(0.25) - exp(0.2)) / 0.25 - 0.1)))",
    ),
    Erratum(
        name="ipo-not-normalised",
        loss="ipo",
        place="OpenRLHF 0.11.2 (`ipo=True`), oxRL 1.7.2; 2310.12036, Eq. 17, read literally",
        says="(Δ − 1/(2τ))² on sums of log-probs",
        derivation="The authors confirmed that their results divide each log-ratio by its length; the literal "
        "form is `ipo_sum`.",
        effect="τ has another unit: the target is 1/(2τ) nats, not nats per token.",
        date=TODAY,
        numbers=_pair(2.0, 0.0, **_lengths(4, 4)),
        theirs="(2 - 5) ** 2",
    ),
    Erratum(
        name="bco-pooled-threshold",
        loss="bco",
        place="TRL 0.11.4 and 0.28.0, `BCOTrainer`",
        says="δ = mean of βρ over all items",
        derivation="The paper's δ is ½(E[βρ | desirable] + E[βρ | undesirable]) (2404.04656); here "
        "`threshold=pooled` is TRL's.",
        effect="With uneven labels δ moves to the common one: with one desirable item of three, by half of the gap.",
        date=TODAY,
        numbers={
            "completion": [2.0, -2.0, -2.0, -2.0],
            "ref_completion": [0.0, 0.0, 0.0, 0.0],
            "desirable": [True, False, False, False],
        },
        settings={"beta": 1.0},
        theirs="log(1 + exp(-(2 + 1)))",
    ),
    Erratum(
        name="bco-pair-without-threshold",
        loss="bco_pair",
        place="TRL 0.29 to 1.16, `bco_pair`; Liger-Kernel 0.8.5, oxRL 1.7.2",
        says="δ = 0",
        derivation="Up to 0.28, and in the author's contribution, δ is the running mean of the rewards of both sides.",
        effect="Pairs whose sides both rise have another loss under the same name; here it is `bco_pair_zero`.",
        date=TODAY,
        numbers=_pair(2.0, 1.0),
        settings={"beta": 1.0},
        theirs="log(1 + exp(-2)) + log(1 + exp(1))",
    ),
    Erratum(
        name="wpo-weight-above-1",
        loss="wpo",
        place="TRL 1.16, `use_weighting` (open-instruct omits the sum over the vocabulary instead)",
        says="w_w w_l ℓ(βΔ)",
        derivation="The paper and the authors' code have min(1, w_w w_l).",
        effect="Tokens that are likelier than Σ_v p_v² give weights above 1.",
        date=TODAY,
        numbers=_pair(0.0, 0.0, **_lengths(1, 1), chosen_log_sum_sq=[[-1.0]], rejected_log_sum_sq=[[-1.0]]),
        theirs="exp(2) * log(2)",
    ),
    Erratum(
        name="sppo-halved",
        loss="sppo",
        place="the authors' code, uclaml/SPPO",
        says="half of Eq. 4.7, in every form",
        derivation="TRL's `sppo_hard`, and the equation, are not halved.",
        effect="The same learning rate is another one.",
        date="2026-11-29",
        numbers=_pair(0.0, 0.0),
        settings={"beta": 0.1},
        theirs="1 / (4 * 0.1 ** 2)",
    ),
    Erratum(
        name="cal-dpo-not-halved",
        loss="cal_dpo",
        place="oxRL 1.7.2, `oxrl/algs/caldpo.py`",
        says="ℓ(Δ) + (ρ_w − 1/(2β))² + (ρ_l + 1/(2β))²",
        derivation="The authors' code halves the squares.",
        effect="Calibration weighs twice as much.",
        date=TODAY,
        numbers=_pair(0.0, 0.0),
        settings={"beta": 0.1},
        theirs="log(2) + 1 / (2 * 0.1 ** 2)",
    ),
    Erratum(
        name="odpo-constant-offset",
        loss="odpo",
        place="oxRL 1.7.2, `oxrl/algs/odpo.py`",
        says="ℓ(βΔ − δ) with one δ for all pairs",
        derivation="The offset grows with the difference of the scores (2402.10571): α log(s_w − s_l).",
        effect="Scores are not read; it is DPO with a margin (`margin_dpo`).",
        date=TODAY,
        numbers=_pair(0.0, 0.0, chosen_score=[2.0], rejected_score=[1.0]),
        theirs="log(1 + exp(1))",
    ),
    Erratum(
        name="rloo-ratio-clipped",
        loss="rloo",
        place="TRL 1.16.0, `RLOOTrainer` (`epsilon` 0.2 by default)",
        says="−min(r A, clip(r, 0.8, 1.2) A), r the ratio of the whole text's probabilities",
        derivation="RLOO is a policy gradient, −r A (2402.14740); the clip is PPO's.",
        effect="None in the first update of a rollout, where r is 1. In later ones a text teaches nothing once its "
        "ratio has left the clip towards its advantage.",
        date=TODAY,
        numbers={
            "completions": [[-1.0, -3.0]],
            "ref_completions": [[-2.0, -2.0]],
            "old_completions": [[-2.0, -2.0]],
            "scores": [[1.0, 0.0]],
            "num_tokens": [[4, 4]],
        },
        settings={"kl": "none"},
        theirs="-(1.2 - 0.8) / 2",
    ),
    Erratum(
        name="cpo-no-likelihood",
        loss="cpo",
        place="mlx-lm-lora 5.10.2, `trainer/cpo_trainer.py`",
        says="ℓ(βd)",
        derivation="CPO is this plus the likelihood of the chosen side (2401.08417).",
        effect="Nothing keeps the chosen text likely.",
        date=TODAY,
        numbers={"chosen": [-1.0], "rejected": [-1.0], **_lengths(1, 1)},
        theirs="log(2)",
    ),
)

ERRATA = (*MISTAKES, *CONVENTIONS)
