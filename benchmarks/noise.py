"""Which method stands wrong labels? DPO, IPO, conservative and robust DPO, with 0 to 40 % of the labels turned round.

    python benchmarks/noise.py

cDPO and robust DPO are told the true share of flips. All at one strength, 128 steps of 32 pairs at learning rate
1e-3, three seeds; held-out accuracy is that of exact rewards, not of labels.

Writes `benchmarks/results/noise.json`.
"""

from __future__ import annotations

from world_suite import BATCH, SEEDS, Line, job, knob, over_seeds, processor_seconds, run, save, workers

STEPS = "trainer.max_steps=128"
FLIPS = (0.0, 0.2, 0.4)
CONTROLS = (
    Line(name="DPO again", loss="dpo", fixed=("loss.beta=0.5",), seed_offset=100, claim="control: DPO at other orders"),
    Line(name="DPO, sides swapped", loss="dpo", fixed=("loss.beta=0.5",), sides_swapped=True, claim="control"),
)
FIGURES = ("true_reward", "kl", "true_accuracy", "valid", "length", "chosen_change")


def lines(flips: float) -> tuple[Line, ...]:
    """The methods, those that take the share of flips told of it."""
    told = f"loss.label_smoothing={flips:g}"
    return (
        Line(name="DPO", loss="dpo", fixed=("loss.beta=0.5",), claim="suffers from flips (2403.00409)"),
        Line(
            name="IPO (sum)",
            loss="ipo_sum",
            fixed=("loss.tau=0.15",),
            claim="does not overfit deterministic labels (2310.12036)",
        ),
        Line(name="cDPO", loss="cdpo", fixed=("loss.beta=0.5", told), claim="a finite target margin (Mitchell, 2023)"),
        Line(
            name="robust DPO",
            loss="robust_dpo",
            fixed=("loss.beta=0.5", told),
            claim="unbiased, robust to flips (2403.00409)",
        ),
    )


def main() -> None:
    team = workers(__doc__)
    pairs = [(flips, line) for flips in FLIPS for line in lines(flips)] + [(0.0, line) for line in CONTROLS]
    jobs = [job(line, STEPS, *knob("label_flips", flips), seed=s) for flips, line in pairs for s in SEEDS]
    results = run("noise", jobs, team)
    left = iter(results)
    rows = [
        {"flips": flips, "name": line.name, "claim": line.claim, **over_seeds([next(left) for _ in SEEDS], *FIGURES)}
        for flips, line in pairs
    ]
    save("noise", {
        "setting": {"steps": 128, "batch": BATCH, "seeds": len(SEEDS)},
        "rows": rows,
        "processor_seconds": processor_seconds(results),
    })  # fmt: skip


if __name__ == "__main__":
    main()
