"""How robust is each method to label noise? DPO, IPO, conservative and robust DPO with 0 to 40 % of labels flipped.

    python benchmarks/noise.py

cDPO and robust DPO are given the true share of flips. All use one strength, 96 steps of 128 pairs at learning rate
1e-3, and three seeds. Held-out accuracy is measured against exact rewards, not labels.

Writes `benchmarks/results/noise.json`.
"""

from __future__ import annotations

from world_suite import Line, cell, knob, tabulated

FLIPS = (0.0, 0.2, 0.4)
CONTROLS = (
    Line(name="DPO again", loss="dpo", fixed=("loss.beta=0.5",), seed_offset=100, claim="control: DPO at other orders"),
    Line(name="DPO, sides swapped", loss="dpo", fixed=("loss.beta=0.5",), sides_swapped=True, claim="control"),
)
FIGURES = ("true_reward", "kl", "true_accuracy", "valid", "length", "chosen_change")


def lines(flips: float) -> tuple[Line, ...]:
    """The methods; cDPO and robust DPO are given the share of flips, and without flips they are DPO."""
    told = ("loss.beta=0.5", f"loss.label_smoothing={flips:g}") if flips else ("loss.beta=0.5",)
    return (
        Line(name="DPO", loss="dpo", fixed=("loss.beta=0.5",), claim="suffers from flips (2403.00409)"),
        Line(
            name="IPO (sum)",
            loss="ipo_sum",
            fixed=("loss.tau=0.15",),
            claim="does not overfit sure labels (2310.12036)",
        ),
        Line(name="cDPO", loss="cdpo" if flips else "dpo", fixed=told, claim="a finite target margin (Mitchell, 2023)"),
        Line(
            name="robust DPO",
            loss="robust_dpo" if flips else "dpo",
            fixed=told,
            claim="unbiased under flips (2403.00409)",
        ),
    )


def main() -> None:
    pairs = [(flips, line) for flips in FLIPS for line in lines(flips)] + [(0.0, line) for line in CONTROLS]
    table = [({"flips": flips}, line, cell(line, *knob("label_flips", flips))) for flips, line in pairs]
    tabulated("noise", __doc__, table, FIGURES)


if __name__ == "__main__":
    main()
