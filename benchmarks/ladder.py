"""Does the order of methods change with the size of the model? Four sizes on the review world, 27k to 1.6M weights.

    python benchmarks/ladder.py              # continues where it was stopped; the three smaller sizes take a core-hour
    python benchmarks/ladder.py --sizes 32   # one size; the others are kept

Each size is a model of its own, after SFT on the same demonstrations (`data.world.width`); the pairs, their order,
steps and trials are the same for all sizes. Of each method four settings are tried (strength and learning rate;
`prefopt.compare.search`) on validation prompts, then the chosen one runs at six fresh seeds on test prompts. The KL
is to the size's own start. Pairwise and pointwise methods (what `prefopt losses` says of them) are compared by their
mean rewards, prompt by prompt. Finished jobs are kept in `benchmarks/results/jobs/`. Writes
`benchmarks/results/ladder.json`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import committed
import numpy as np
import world_suite
from numpy.typing import NDArray
from scipy.stats import kendalltau

from prefopt.compare.comparison import compare as run_comparison
from prefopt.compare.jobs import Job, JobResult
from prefopt.compare.outcome import ComparisonOutcome
from prefopt.compare.results import plain, seeds_by_prompts, smallest_rule
from prefopt.compare.spec import Budget, Comparison, MeasureConfig, Method
from prefopt.compare.statistics import compare
from prefopt.worlds.build import new_model

WIDTHS = (32, 64, 128, 256)
METHODS = ("dpo", "ipo_sum", "simpo", "kto", "apo_zero", "nca")
GROUPS = ("pairwise", "pointwise")
STEPS, BATCH, TRIALS, SEEDS = 96, 64, 4, 6
MEASURE = MeasureConfig(prompts=512, samples_per_prompt=2, texts=0)
SUITE, ARRAYS = "ladder", ("true_reward", "kl", "valid")
OUT = Path("runs/benchmarks/ladder")
RESULT = world_suite.RESULTS / "ladder.json"


def comparison(width: int, *, trials: int = TRIALS, seeds: int = SEEDS, steps: int = STEPS) -> Comparison:
    """The comparison of one size."""
    shared = (f"trainer.max_steps={steps}", f"batch.records={BATCH}", f"data.world.width={width}")
    return Comparison(
        methods=tuple(Method(name=name, loss=name) for name in METHODS), overrides=shared, budget=Budget(trials=trials),
        seeds=seeds, measure=MEASURE,
    )  # fmt: skip


def measured(width: int, workers: int) -> dict[str, Any]:
    """The rows of one size, and pairwise against pointwise."""

    asked: list[Job] = []

    def run(jobs: Sequence[Job]) -> list[JobResult]:
        asked.extend(jobs)
        order = sorted(range(len(jobs)), key=lambda i: jobs[i].config.seed)
        results = world_suite.run(SUITE, [jobs[i] for i in order], workers, ARRAYS)
        found = dict(zip(order, results, strict=True))
        return [found[i] for i in range(len(jobs))]

    found = run_comparison(
        comparison(width), OUT / str(width), workers=0, command="python benchmarks/ladder.py", runner=run
    )
    rows = plain(found)["methods"]
    return {
        "width": width,
        "weights": new_model(0, width).num_parameters(),
        "rows": [
            {name: row[name] for name in ("name", "ranking", "point", "interval", "chosen", "edges", "control")}
            | {name: row["figures"].get(name) for name in ("kl", "valid")}
            for row in rows
        ],
        "groups": groups(found),
        "jobs": committed.provenance(SUITE, asked),
    }  # fmt: skip


def groups(found: ComparisonOutcome) -> dict[str, Any] | None:
    """Mean reward of the pairwise methods minus that of the pointwise ones; None where a group did not finish."""
    values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in GROUPS}
    for standing in found.standings:
        array = seeds_by_prompts(standing.runs, found.metric)
        if standing.ranking in values and standing.name in METHODS and array is not None:
            values[standing.ranking].append(array)
    seeds = min((len(array) for own in values.values() for array in own), default=0)
    if not seeds or not all(values.values()):
        return None
    means = {name: np.mean([array[:seeds] for array in own], axis=0) for name, own in values.items()}
    (pair,) = compare(means, found.metric, smallest=smallest_rule((), found.metric))
    sign = 1 if pair.a == GROUPS[0] else -1
    low, high = sorted((sign * pair.low, sign * pair.high))
    words = {"better": "worse", "worse": "better"} if sign < 0 else {}
    return {"difference": sign * pair.difference, "interval": [low, high],
            "verdict": words.get(pair.verdict, pair.verdict)}  # fmt: skip


def order(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The rewards of the methods, in the order of `METHODS`; nan where one did not finish."""
    points = {row["name"]: row["point"] for row in rows}
    return [np.nan if points.get(name) is None else float(points[name]) for name in METHODS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(WIDTHS), help="widths (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each (default: %(default)s)")
    args = parser.parse_args()
    saved = json.loads(RESULT.read_text())["sizes"] if RESULT.exists() else []
    for width in args.sizes:
        saved = [*(one for one in saved if one["width"] != width), measured(width, args.workers)]
        sizes = sorted(saved, key=lambda one: one["width"])
        first = next((one for one in sizes if one["width"] == 64), sizes[0])
        for one in sizes:
            tau = kendalltau(order(first["rows"]), order(one["rows"]), nan_policy="omit").statistic
            one["agreement"] = None if np.isnan(tau) else round(float(tau), 3)
        setting = {"steps": STEPS, "pairs": BATCH, "trials": TRIALS, "seeds": SEEDS}
        world_suite.save("ladder", {"setting": setting, "sizes": sizes})


if __name__ == "__main__":
    main()
