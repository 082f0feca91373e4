"""Which methods write longer because raters prefer length? Labels that favour it by 0.05 reward per token.

    python benchmarks/length.py

The same methods also train on unbiased labels. The true reward ignores length, so whatever a policy gains in length
comes from the bias of the labels. Every run: 96 steps of 128 pairs, three seeds, learning rate 1e-3 (3e-4 for SimPO).

Writes `benchmarks/results/length.json`.
"""

from __future__ import annotations

from world_suite import Line, cell, knob, tabulated

BIASES = (0.0, 0.05)
LINES = (
    Line(name="SFT", loss="sft", claim="writes as the chosen side does"),
    Line(name="DPO", loss="dpo", fixed=("loss.beta=0.5",), claim="writes longer, beyond the data (2403.19159)"),
    Line(
        name="R-DPO",
        loss="r_dpo",
        fixed=("loss.beta=0.5", "loss.alpha=0.1"),
        claim="shorter than DPO, as good (2403.19159)",
    ),
    Line(
        name="SimPO",
        loss="simpo",
        fixed=("loss.beta=5", "trainer.learning_rate=3e-4"),
        claim="not much longer (2405.14734)",
    ),
    Line(name="LD-DPO", loss="ld_dpo", fixed=("loss.beta=0.5",), claim="10 to 40 % shorter than DPO (2409.06411)"),
    Line(name="DPO-norm", loss="dpo_norm", fixed=("loss.beta=5",), claim="better than DPO and SimPO (2411.15124)"),
    Line(name="SamPO", loss="sam_po", fixed=("loss.beta=0.5",), claim="relies less on length than DPO (2406.10957)"),
    Line(name="DPO again", loss="dpo", fixed=("loss.beta=0.5",), seed_offset=100, claim="control: DPO at other orders"),
    Line(name="DPO, sides swapped", loss="dpo", fixed=("loss.beta=0.5",), sides_swapped=True, claim="control"),
)
FIGURES = ("length", "true_reward", "kl", "valid", "chosen_change", "rejected_change")


def main() -> None:
    table = [({"bias": bias}, line, cell(line, *knob("length_bias", bias))) for bias in BIASES for line in LINES]
    tabulated("length", __doc__, table, FIGURES)


if __name__ == "__main__":
    main()
