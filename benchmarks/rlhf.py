"""Does it pay to learn from one's own samples? Suites of online rows on the review world, whose reward is exact.

    python benchmarks/rlhf.py against_dpo       # continues where it was stopped
    python benchmarks/rlhf.py sources
    python benchmarks/rlhf.py kl_place
    python benchmarks/rlhf.py labels

against_dpo: reward at matched KL of RLOO on the exact reward and on a reward model from the 7,936 pairs, of GRPO and of
    online DPO; 256 steps of 128 texts, as many as `controlled.py` gives the methods on pairs, whose rows and
    yardsticks are shown beside them.
sources: eight losses on the pairs and the same on the policy's own samples, labelled by the same Bradley-Terry rater.
kl_place: the KL in the reward, in the loss (k3), or nowhere, at one beta.
labels: online DPO with Bradley-Terry labels, with both orders weighted, and with the better text always chosen.

The learning rate of on-policy rows (2e-3) was picked on test prompts of one draw, from 1e-3 and 2e-3, before the
suites. Controls: the first method under a second name, with its rewards negated, and shuffled within a rollout.
Predictions are in `rlhf_predictions.json`, and the tables check them. Writes `benchmarks/results/rlhf_SUITE.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from controlled import KLS, METHODS, compared, finished, frontier, plain
from world_suite import TEST, Cell, Line, by_seed, job, over_seeds, save, size, worker_seconds

from prefopt.common.digest import of_json
from prefopt.compare.frontier import at_matched_kl
from prefopt.compare.jobs import Job, JobResult
from prefopt.config.compose import compose
from prefopt.runs.run import run as run_training
from prefopt.worlds.build import MAX_NEW_TOKENS

GROUP, PROMPTS = 8, 16  # samples of a prompt, and prompts of a step: 128 texts
OWN = ("source=rollouts", f"rollout.max_new_tokens={MAX_NEW_TOKENS}", "trainer.learning_rate=0.002")
GROUPS = (*OWN, f"rollout.num_generations={GROUP}", f"batch.records={PROMPTS}")
PAIRS = (*OWN, "rollout.num_generations=2", f"batch.records={GROUP * PROMPTS // 2}", "rollout.label_temperature=0.5")
OFFLINE = ("batch.records=64", "trainer.learning_rate=0.001")  # 128 texts a step, too
FIGURES = ("true_reward", "kl", "valid", "length", "entropy", "distinct_2")
COSTS = (
    "labels",
    "tokens_sampled",
    "tokens_scored",
    "tokens",
    "reward_model_seconds",
    "train_seconds",
    "processor_seconds",
)
COMPARED = ("true_reward", "kl")  # prompt by prompt, where lines have several strengths
BETA = 0.8  # where one strength is enough
RLOO = Line(name="RLOO", loss="rloo", strength="beta", values=(1.3, 0.8, 0.5), fixed=GROUPS)
LEARNED = replace(RLOO, name="RLOO, reward model", values=(1.0, 0.5, 0.25))
MODELS = Path("runs/benchmarks-reward-models")
ONLINE = ("DPO", "IPO (sum)", "Hinge", "CPO", "SimPO", "ORPO", "APO-zero", "DPO + SFT")  # of suite `sources`


def reward_model(pairs: int, draw: int, member: int = 0) -> str:
    """The folder of a reward model on the first pairs of a draw; trained at the first call, for about two epochs."""
    steps = max(64, 2 * pairs // 64)
    said = ["loss=bradley_terry", f"data.world.pairs={pairs}", f"data.world.draw={draw}", "batch.records=64",
            "trainer.learning_rate=0.001", f"trainer.max_steps={steps}", f"seed={100 * member + draw}"]  # fmt: skip
    folder = MODELS / of_json(said)
    if not (folder / "summary.json").exists():
        run_training(compose([*said, f"output_dir={folder}", "progress=quiet"]))
    return str(folder)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite.

    Attributes:
        lines: the rows of its table.
        steps: of every run.
        beta: of `reward - beta * KL`, where one is maximised.
        rewards: of lines without the exact reward: from a draw to the option `reward`.
    """

    lines: tuple[Line, ...]
    steps: int
    beta: float | None = None
    rewards: Mapping[str, Callable[[int], str]] = field(default_factory=dict)

    def cell(self, line: Line, value: float | None) -> Cell:
        """A line at one strength, by seed."""

        def made(seed: int) -> Job:
            reward = [f"reward={self.rewards[line.name](seed)}"] if line.name in self.rewards else []
            return job(line, f"trainer.max_steps={self.steps}", *reward, value=value, seed=seed, measure=TEST)

        return made


def controls(line: Line) -> tuple[Line, ...]:
    """The line under a second name, and with changed rewards."""
    return (
        replace(line, name=f"{line.name} again", seed_offset=100),
        replace(line, name=f"{line.name}, rewards negated", reward_change="negated"),
        replace(line, name=f"{line.name}, rewards shuffled", reward_change="shuffled"),
    )


def one(line: Line, value: float = BETA) -> Line:
    """A line at one strength."""
    return replace(line, values=(value,))


def both_sources() -> tuple[Line, ...]:
    """Eight losses at the middle of their grids, on the pairs and on samples."""
    lines = [one(line, line.values[1]) for line in METHODS if line.name in ONLINE]
    return tuple(
        replace(line, name=f"{line.name}, {where}", fixed=(*line.fixed, *how))
        for line in lines
        for where, how in (("pairs", OFFLINE), ("own samples", (*PAIRS, "trainer.learning_rate=0.001")))
    )


DPO = Line(name="DPO, own samples", loss="dpo", strength="beta", values=(2, 1, 0.5), fixed=PAIRS)
GRPO = Line(name="GRPO", loss="grpo", strength="beta", values=(1, 0.3, 0.1), fixed=GROUPS)
SUITES = {
    "against_dpo": Suite(
        lines=(RLOO, LEARNED, GRPO, DPO, *controls(one(RLOO))),
        steps=256,
        rewards={LEARNED.name: partial(reward_model, 7936)},
    ),
    "sources": Suite(lines=both_sources(), steps=256),
    "kl_place": Suite(
        lines=tuple(
            replace(one(line), name=f"{line.name}, {where}", fixed=(*GROUPS, f"loss.kl={kl}"))
            for line in (RLOO, Line(name="Dr. GRPO", loss="dr_grpo", strength="beta"))
            for where, kl in (("KL in the reward", "REWARD"), ("k3 in the loss", "LOSS_K3"), ("no KL", "NONE"))
        ),
        steps=96,
        beta=BETA,
    ),
    "labels": Suite(
        lines=tuple(
            replace(one(DPO, 1.0), name=f"DPO, {name}", fixed=(*PAIRS, *how), seed_offset=offset)
            for name, how, offset in (
                ("labels drawn", ("rollout.label=BT",), 0), ("labels drawn, again", ("rollout.label=BT",), 100),
                ("both orders weighted", ("rollout.label=SOFT",), 0),
                ("the better text", ("rollout.label=ARGMAX", "rollout.allow_argmax=true"), 0),
            )
        ),
        steps=96,
    ),
}  # fmt: skip


def row(line: Line, value: float | None, results: Sequence[JobResult], beta: float | None) -> dict[str, Any]:
    """A line at one strength: figures over seeds, and what one run took."""
    found = over_seeds(results, *FIGURES)
    if beta is not None and found["true_reward"] is not None:
        found["objective"] = round(found["true_reward"] - beta * found["kl"], 4)
    good = [result.cost for result in results if result.ok]
    costs = {name: round(fmean(cost[name] for cost in good), 1) if good else None for name in COSTS}
    return {"name": line.name, "loss": line.loss, "strength": line.strength, "value": value, **found, **costs}


def main() -> None:
    allowed = size(__doc__, SUITES)
    suite, name = SUITES[allowed.suite], f"rlhf_{allowed.suite}"
    lines = suite.lines[: allowed.lines]
    points = [(line, value) for line in lines for value in line.values]
    arrays = COMPARED if any(len(line.values) > 1 for line in lines) else ()
    results = by_seed(name, [suite.cell(*point) for point in points], allowed, arrays)
    by_line: dict[str, list[list[JobResult]]] = {}
    for (line, _), own in zip(points, results, strict=True):
        by_line.setdefault(line.name, []).append(own)
    curves = {n: curve for n, own in by_line.items() if len(own) > 1 and (curve := frontier(own)) is not None}
    save(name, {
        "not_run": [line.name for line in suite.lines if line not in lines],
        "setting": {"steps": suite.steps, "texts": GROUP * PROMPTS, "seeds": allowed.seeds, "kl": KLS,
                    "beta": suite.beta},
        "rows": [row(*point, own, suite.beta) for point, own in zip(points, results, strict=True)],
        "at_kl": {n: [plain(at) for at in at_matched_kl(curve, KLS)] for n, curve in curves.items()},
        "pairs": compared(curves, {n: finished(by_line[n]) for n in curves}) if len(curves) > 1 else [],
        "worker_seconds": worker_seconds([result for own in results for result in own]),
    })  # fmt: skip


if __name__ == "__main__":
    main()
