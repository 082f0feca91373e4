"""Does the chosen log-prob fall? Nine methods, with chosen texts of the policy itself and of a better writer.

    python benchmarks/displacement.py

On-policy, both texts of a pair are samples of the model that is tuned; the log-prob of chosen texts can then rise by at
most KL(p_chosen || reference) on average, here some tenths of a nat. Off-policy, one of them is the best of eight
samples by exact reward. Every run: 96 steps of 128 pairs at learning rate 1e-3, three seeds. Changes are measured on
256 held-out pairs of the same kind.

Writes `benchmarks/results/displacement.json`.
"""

from __future__ import annotations

from world_suite import Line, cell, tabulated

WORLDS = {"on-policy": (), "off-policy": ("data.world.best_of=8",)}
LINES = (
    Line(name="SFT", loss="sft", claim="raises it, by definition"),
    Line(
        name="DPO",
        loss="dpo",
        fixed=("loss.beta=0.5",),
        claim="may fall while the margin grows (2402.13228, 2404.19733)",
    ),
    Line(
        name="IPO (sum)", loss="ipo_sum", fixed=("loss.tau=0.15",), claim="bounds the margin, says nothing of the sides"
    ),
    Line(name="SimPO", loss="simpo", fixed=("loss.beta=5", "trainer.learning_rate=3e-4"), claim="none"),
    Line(
        name="KTO",
        loss="kto",
        fixed=("loss.beta=0.5",),
        claim="each side against a reference point of its own (2402.01306)",
    ),
    Line(
        name="DPOP",
        loss="dpop",
        fixed=("loss.beta=0.5", "loss.lam=1"),
        claim="stays at or above the reference (2402.13228)",
    ),
    Line(name="DPO + SFT", loss="irpo", fixed=("loss.beta=0.5",), claim="rises where DPO lets it fall (2404.19733)"),
    Line(name="ORPO", loss="orpo", fixed=("loss.lam=3",), claim="rises, rejected falls (2403.07691)"),
    Line(name="NCA", loss="nca", fixed=("loss.beta=0.5",), claim="keeps the chosen side up, unlike DPO (2402.05369)"),
    Line(name="DPO again", loss="dpo", fixed=("loss.beta=0.5",), seed_offset=100, claim="control: DPO at other orders"),
    Line(
        name="DPO, sides swapped",
        loss="dpo",
        fixed=("loss.beta=0.5",),
        sides_swapped=True,
        claim="control: falls furthest",
    ),
)
FIGURES = ("chosen_change", "rejected_change", "true_reward", "kl", "valid", "length", "accuracy")


def main() -> None:
    table = [({"world": world}, line, cell(line, *WORLDS[world])) for world in WORLDS for line in LINES]
    tabulated("displacement", __doc__, table, FIGURES)


if __name__ == "__main__":
    main()
