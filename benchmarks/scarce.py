"""What if good examples are rare? KTO with 50 to 90 % of desirable texts dropped, against DPO on the remaining pairs.

    python benchmarks/scarce.py

KTO trains on all undesirable texts and the remaining desirable ones, with equal weights and with weights that bring
`desirable_weight * n_desirable / (undesirable_weight * n_undesirable)` back to 1. DPO can use a pair only if both texts
remain. Every run: 96 steps at learning rate 1e-3, three seeds; 128 pairs or 256 single texts per step, the same number
of texts.

Writes `benchmarks/results/scarce.json`.
"""

from __future__ import annotations

from collections.abc import Iterator

from world_suite import BATCH, Line, cell, knob, tabulated

PAIRS = 7936
DROPPED = (0.0, 0.5, 0.7, 0.9)
FIGURES = ("true_reward", "kl", "valid", "length", "true_accuracy", "chosen_change", "rejected_change")
CLAIM = "as good as DPO with up to 90 % of desirable texts dropped (2402.01306)"


def lines(dropped: float) -> Iterator[Line]:
    """The methods for a share of dropped texts."""
    single = (*knob("desirable_dropped", dropped), f"batch.records={2 * BATCH}") if dropped else ()
    yield Line(name="KTO", loss="kto", fixed=("loss.beta=0.5", *single), claim=CLAIM)
    if dropped:
        weight = f"loss.desirable_weight={1 / (1 - dropped):.4g}"
        yield Line(name="KTO, balanced", loss="kto", fixed=("loss.beta=0.5", weight, *single), claim=CLAIM)
    pairs = knob("pairs", round(PAIRS * (1 - dropped))) if dropped else ()
    yield Line(name="DPO on the pairs left", loss="dpo", fixed=("loss.beta=0.5", *pairs), claim="the baseline")
    if not dropped:
        yield Line(
            name="KTO again",
            loss="kto",
            fixed=("loss.beta=0.5",),
            seed_offset=100,
            claim="control: KTO at other orders",
        )
        yield Line(
            name="KTO, labels swapped", loss="kto", fixed=("loss.beta=0.5",), sides_swapped=True, claim="control"
        )


def main() -> None:
    table = [({"dropped": dropped}, line, cell(line)) for dropped in DROPPED for line in lines(dropped)]
    tabulated("scarce", __doc__, table, FIGURES)


if __name__ == "__main__":
    main()
