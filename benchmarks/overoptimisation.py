"""When does a reward model mislead? RLOO on reward models from 250, 1,000 and 7,936 pairs, and on ensembles of them.

    python benchmarks/overoptimisation.py       # continues where it was stopped

Every reward model learns from the first pairs of the draw of its seed, for two epochs and at least 64 steps. RLOO then
runs 256 steps of 128 texts at five strengths: the further it moves, the more the model's own score (the proxy) and the
true reward part. DPO on the same pairs, at four strengths, has no reward model and a curve of its own. Fitted for every
line: reward gained = d (alpha - beta log d), d the square root of the KL (Gao et al., 2023,
https://arxiv.org/abs/2210.10760); intervals are bootstrapped over runs.

Writes `benchmarks/results/overoptimisation.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from controlled import DPO, FIGURES, rounded
from numpy.typing import NDArray
from rlhf import GROUPS, reward_model
from rlhf_tables import controlled
from world_suite import TEST, Line, by_seed, job, over_seeds, save, size, worker_seconds

from prefopt.compare.jobs import Job, JobResult

Floats = NDArray[np.float64]
PAIRS = (250, 1000, 7936)
ENSEMBLE, MEMBERS = 1000, 3  # pairs of each of so many models, which differ in head and order of the pairs
STEPS, BATCH = 256, 64
STRENGTHS = (2.0, 1.0, 0.5, 0.25, 0.1)  # beta, in units of the model's score
RESAMPLES = 1000


def rewards() -> dict[str, Any]:
    """What scores samples, by name: from the number of a draw to the option `reward`."""
    named: dict[str, Any] = {f"{pairs} pairs": partial(reward_model, pairs) for pairs in PAIRS}

    def of_several(rule: str, draw: int) -> str:
        members = ",".join(reward_model(ENSEMBLE, draw, member) for member in range(MEMBERS))
        return f"{{{rule}:[{members}]}}"

    for rule in ("mean", "min"):
        named[f"{rule} of {MEMBERS}, {ENSEMBLE} pairs"] = partial(of_several, rule)
    return named


def rloo(reward: Any, beta: float, seed: int) -> Job:
    """One run on a reward model of its own draw."""
    line = Line(name="RLOO", loss="rloo", strength="beta", fixed=(*GROUPS, f"reward={reward(seed)}"))
    return job(line, f"trainer.max_steps={STEPS}", value=beta, seed=seed, measure=TEST)


def dpo(pairs: int, beta: float, seed: int) -> Job:
    """One run of DPO on the same pairs."""
    said = (f"data.world.pairs={pairs}", f"trainer.max_steps={STEPS}", f"batch.records={BATCH}",
            "trainer.learning_rate=0.001")  # fmt: skip
    return job(DPO, *said, value=beta, seed=seed, measure=TEST)


def proxy(result: JobResult) -> float:
    """What the samples gained by the reward that the run was given: of the last log over the first."""
    logged = [point["reward"] for point in result.curve if "reward" in point]
    return logged[-1] - logged[0] if logged else float("nan")


def fitted(kl: Floats, gained: Floats) -> Floats:
    """(alpha, beta) of `gained = d (alpha - beta log d)`, by least squares."""
    d = np.sqrt(np.maximum(kl, 1e-6))
    found: Floats = np.linalg.lstsq(np.stack([d, -d * np.log(d)], 1), gained, rcond=None)[0]
    return found


def fit(results: Sequence[JobResult], start: float) -> dict[str, float | None]:
    """alpha and beta of the true reward with 95 % intervals over resampled runs."""
    kl, gained = (np.array([r.figures[name] for r in results]) for name in ("kl", "true_reward"))
    gained = gained - start
    rng = np.random.default_rng(0)
    picks = rng.integers(len(results), size=(RESAMPLES, len(results)))
    drawn = np.stack([fitted(kl[pick], gained[pick]) for pick in picks if len(set(pick.tolist())) > 1])
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    alpha, beta = fitted(kl, gained)
    return rounded({"alpha": alpha, "alpha_low": low[0], "alpha_high": high[0], "beta": beta, "beta_low": low[1],
                    "beta_high": high[1]})  # fmt: skip


def main() -> None:
    allowed = size(__doc__)
    lines = {f"RLOO, {name}": [partial(rloo, reward, beta) for beta in STRENGTHS] for name, reward in rewards().items()}
    lines |= {f"DPO, {pairs} pairs": [partial(dpo, pairs, beta) for beta in DPO.values] for pairs in PAIRS}
    cells = [(name, cell) for name, own in lines.items() for cell in own]
    results = by_seed("overoptimisation", [cell for _, cell in cells], allowed, arrays=())
    start = controlled()["yardsticks"]["best_of_n"][0]["reward"]  # one sample of the SFT model
    rows = []
    for name in lines:
        own = [found for (line, _), found in zip(cells, results, strict=True) if line == name]
        good = [result for found in own for result in found if result.ok]
        points = [
            {
                **over_seeds(found, *FIGURES),
                **rounded({"proxy": float(np.mean([proxy(r) for r in found if r.ok] or [np.nan]))}),
            }
            for found in own
        ]
        rows.append({"name": name, "points": points, "fit": fit(good, start) if len(good) > 2 else None})
    save("overoptimisation", {
        "setting": {"steps": STEPS, "seeds": allowed.seeds, "start": start},
        "rows": rows,
        "worker_seconds": worker_seconds([result for found in results for result in found]),
    })  # fmt: skip


if __name__ == "__main__":
    main()
