"""Which method gets the most reward for its distance? Twelve methods, four strengths, three seeds, on the review world.

    python benchmarks/controlled.py        # continues where it was stopped

Every run: 256 steps of 64 pairs, cosine to 0, from one SFT model, on the same pairs in the same order. Each method's
learning rate is selected by true reward on validation prompts, at one strength, on a separate draw of the data: five
rates are tried in 128 steps of 32 pairs, and the best two again in whole runs (successive halving, Jamieson and
Talwalkar 2016). Then every strength runs at each seed, and is measured on test prompts with 4,096 samples per run.
Two lines are controls: DPO under a second name, with other orders of the same pairs, and DPO with swapped sides.

Writes `benchmarks/results/controlled.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from world_suite import VALIDATION, Cell, Line, by_seed, job, over_seeds, run, save, size, worker_seconds

from prefopt.compare.frontier import AtKL, Runs, Yardstick, at_matched_kl, best_of_n, matched, tilt
from prefopt.compare.jobs import Job, JobResult
from prefopt.compare.spec import MeasureConfig
from prefopt.compare.statistics import compare

KLS = (0.5, 1.0, 1.3, 2.0, 3.5)  # 1.3 was added after the runs, because most methods reach it
STEPS, BATCH = 256, 64  # and pairs a step: twice over the data
TRIAL_STEPS, TRIAL_BATCH = 128, 32
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)  # with 1e-2, most lines diverge at some strengths or all
FINALISTS = 2
Trials = dict[float, JobResult]  # of a line, by learning rate
TUNING_SEED = 9
MEASURE = MeasureConfig(prompts=1024, samples_per_prompt=4, texts=1)  # 4,096 samples: estimates of KL are compared
BEST_OF = (1, 2, 4, 8, 16, 32)
TEMPERATURES = (4.0, 2.0, 1.3, 1.0, 0.8, 0.65, 0.5, 0.4, 0.35)
FIGURES = ("true_reward", "kl", "kl_monte_carlo", "valid", "length", "entropy", "distinct_2", "accuracy",
           "true_accuracy", "accuracy_mean", "chosen_change", "rejected_change")  # fmt: skip

DPO = Line(name="DPO", loss="dpo", strength="beta", values=(2, 1, 0.5, 0.2))
METHODS = (
    DPO,
    Line(name="IPO (sum)", loss="ipo_sum", strength="tau", values=(0.3, 0.15, 0.07, 0.03)),
    Line(name="IPO (mean)", loss="ipo", strength="tau", values=(3, 1.5, 0.7, 0.3)),
    Line(name="Hinge", loss="hinge", strength="beta", values=(2, 1, 0.5, 0.2)),
    Line(name="CPO", loss="cpo", strength="alpha", values=(2, 0.8, 0.3, 0.1), fixed=("loss.beta=0.3",)),
    Line(name="SimPO", loss="simpo", strength="beta", values=(20, 10, 5, 2.5)),
    Line(name="ORPO", loss="orpo", strength="lam", values=(1, 3, 9, 27)),
    Line(name="KTO", loss="kto", strength="beta", values=(2, 1, 0.5, 0.2)),
    Line(name="APO-zero", loss="apo_zero", strength="beta", values=(2, 1, 0.5, 0.2)),
    Line(name="NCA", loss="nca", strength="beta", values=(0.6, 0.25, 0.1, 0.03)),
    Line(name="DPO + SFT", loss="irpo", strength="alpha", values=(1, 0.3, 0.1, 0.03), fixed=("loss.beta=0.3",)),
    Line(name="DPOP", loss="dpop", strength="lam", values=(1, 0.3, 0.1, 0.03), fixed=("loss.beta=0.3",)),
)
TRIED = {  # the strength of the learning-rate trials
    "DPO": 0.5, "IPO (sum)": 0.12, "IPO (mean)": 1.2, "Hinge": 0.5, "CPO": 0.8, "SimPO": 10, "ORPO": 2, "KTO": 0.6,
    "APO-zero": 0.6, "NCA": 0.15, "DPO + SFT": 0.3, "DPOP": 0.3,
}  # fmt: skip
SFT = Line(name="SFT", loss="sft")
AGAIN = dataclasses.replace(DPO, name="DPO again", seed_offset=100)
WRONG = Line(name="DPO, sides swapped", loss="dpo", sides_swapped=True)


def trial(line: Line, rate: float, steps: int, batch: int) -> Job:
    """One trial of a learning rate."""
    said = (f"trainer.max_steps={steps}", f"batch.records={batch}", f"trainer.learning_rate={rate:g}")
    value = TRIED.get(line.name)
    return job(line, *said, value=value, seed=TUNING_SEED, split="validation", measure=VALIDATION)


def final(line: Line, value: float | None, rate: float) -> Cell:
    """A line at one strength, by seed."""
    said = (f"trainer.max_steps={STEPS}", f"batch.records={BATCH}", f"trainer.learning_rate={rate:g}")
    return lambda seed: job(line, *said, value=value, seed=seed, measure=MEASURE)


def tuned(lines: Sequence[Line], team: int) -> dict[str, list[Trials]]:
    """The trials of each line: the short ones, then the whole runs, each with the best learning rate first."""
    found: dict[str, list[Trials]] = {line.name: [] for line in lines}
    entered = {line.name: list(RATES) for line in lines}
    for steps, batch in ((TRIAL_STEPS, TRIAL_BATCH), (STEPS, BATCH)):
        jobs = [trial(line, rate, steps, batch) for line in lines for rate in entered[line.name]]
        results = iter(run("tuning", jobs, team))
        for name, rates in entered.items():
            own = {rate: next(results) for rate in rates}
            reward = {rate: result.figures["true_reward"] if result.ok else -np.inf for rate, result in own.items()}
            best_first = sorted(rates, key=reward.__getitem__, reverse=True)
            found[name].append({rate: own[rate] for rate in best_first})
            entered[name] = best_first[:FINALISTS]
    return found


def finished(points: Sequence[Sequence[JobResult]]) -> list[int]:
    """The seeds (draws of the data) at which every run of a method finished."""
    return [seed for seed in range(len(points[0])) if all(own[seed].ok for own in points)]


def frontier(points: Sequence[Sequence[JobResult]]) -> Runs | None:
    """A method's runs by seed and strength as arrays; seeds with an unfinished run are left out."""
    seeds = finished(points)
    if not seeds:
        return None
    reward, kl = (
        np.array([[own[seed].arrays[name] for own in points] for seed in seeds]) for name in ("true_reward", "kl")
    )
    return Runs(reward, kl)


def compared(curves: Mapping[str, Runs], seeds: Mapping[str, Sequence[int]] | None = None) -> list[dict[str, Any]]:
    """Compare every two methods at every KL that both reach at all seeds: difference, interval, verdict after Holm.

    Without a smallest difference that matters: at one KL every sure difference is a finding, and nothing is a tie.
    `seeds` are the numbers of a method's runs; 0, 1, ... by default.
    """
    found = []
    for kl in KLS:
        values = {name: rewards for name, curve in curves.items() if (rewards := matched(curve, kl)) is not None}
        for pair in compare(values, "true_reward", smallest=None, numbers=seeds) if len(values) > 1 else ():
            kept = {k: getattr(pair, k) for k in ("a", "b", "verdict", "seeds")}
            numbers = {k: getattr(pair, k) for k in ("difference", "low", "high", "p_holm")}
            found.append({"kl": kl, **kept, **rounded(numbers)})
    return found


def plain(row: AtKL | Yardstick) -> dict[str, Any]:
    """A row as JSON values."""
    return rounded(dataclasses.asdict(row))


def rounded(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers to four digits; None where not finite."""
    return {name: round(value, 4) if np.isfinite(value) else None for name, value in numbers.items()}


def yardsticks() -> dict[str, Any]:
    """Best-of-n and the oracle tilt of the SFT model, from 512 samples for each of 128 test prompts."""
    from prefopt.evaluate.world import rewards
    from prefopt.models.load import load_model
    from prefopt.models.model_config import ModelConfig
    from prefopt.worlds import resolve
    from prefopt.worlds.review import ReviewWorld

    model = load_model(ModelConfig(path=str(resolve().model)))
    drawn = rewards(ReviewWorld(), model, prompts=128, samples_per_prompt=512)
    return {
        "best_of_n": list(map(plain, best_of_n(drawn, BEST_OF))),
        "tilt": list(map(plain, tilt(drawn, TEMPERATURES))),
    }


def main() -> None:
    allowed = size(__doc__)
    searches = tuned((*METHODS, SFT), allowed.workers)
    searches[AGAIN.name] = searches[WRONG.name] = searches[DPO.name]
    rates = {name: next(iter(search[-1])) for name, search in searches.items()}
    lines = (*METHODS, SFT, AGAIN, dataclasses.replace(WRONG, strength="beta", values=DPO.values[1:2]))
    points = [(line, value) for line in lines for value in line.values or (None,)]
    results = by_seed("controlled", [final(line, value, rates[line.name]) for line, value in points], allowed)
    by_line: dict[str, list[list[JobResult]]] = {line.name: [] for line in lines}
    for (line, _), own in zip(points, results, strict=True):
        by_line[line.name].append(own)
    curves = {line.name: frontier(by_line[line.name]) for line in lines if len(line.values) > 1}
    known = {name: curve for name, curve in curves.items() if curve is not None}
    every_trial = [r for search in searches.values() for tried in search for r in tried.values()]
    every = [r for points in by_line.values() for own in points for r in own]
    gaps = np.array([r.arrays["kl_gap"].mean() / (r.arrays["kl_gap"].std(ddof=1) / len(r.arrays["kl_gap"]) ** 0.5)
                     for r in every if r.ok])  # fmt: skip
    rows = [
        {
            "name": line.name,
            "loss": line.loss,
            "fixed": list(line.fixed),
            "strength": line.strength,
            "learning_rate": rates[line.name],
            "trials": [
                {"steps": steps, "learning_rate": rate, **over_seeds([found], "true_reward", "kl")}
                for steps, tried in zip((TRIAL_STEPS, STEPS), searches[line.name], strict=True)
                for rate, found in tried.items()
            ],
            "points": [
                {"value": value, **over_seeds(own, *FIGURES)}
                for value, own in zip(line.values or (None,), by_line[line.name], strict=True)
            ],
            "at_kl": [plain(row) for row in at_matched_kl(known[line.name], KLS)] if line.name in known else [],
        }
        for line in lines
    ]
    save("controlled", {
        "setting": {"steps": STEPS, "batch": BATCH, "seeds": allowed.seeds, "kl": KLS},
        "rows": rows,
        "pairs": compared(known, {name: finished(by_line[name]) for name in known}),
        "yardsticks": yardsticks(),
        "kl_check": {"runs": len(gaps), "samples": 4096, "mean_z": round(float(gaps.mean()), 3),
                     "sd_z": round(float(gaps.std(ddof=1)), 3), "largest_z": round(float(abs(gaps).max()), 2)},
        "worker_seconds": worker_seconds(every + every_trial),
    })  # fmt: skip


if __name__ == "__main__":
    main()
