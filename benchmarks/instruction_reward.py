"""What does the rule of the instruction world reward? Its best and worst texts, and what it gives to texts that cheat.

    python benchmarks/instruction_reward.py

Scores the samples of the model behind the validation prompts (four each, drawn on first use), the data's own answers,
and made-up ones: an empty text, the prompt copied, the data's answer twice, one fixed sentence, and the same word
sixteen times. Writes `benchmarks/results/instruction_reward.json`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from prefopt.common.cache import cache_dir
from prefopt.worlds import InstructionWorld
from prefopt.worlds.instruction_files import InstructionTask, records, samples, split_prompts, text_of
from prefopt.worlds.instructions import QUALITIES, answer_reward, qualities
from prefopt.worlds.task import Task

RESULT = Path(__file__).with_name("results") / "instruction_reward.json"
SHOWN = 10
SENTENCE = "The answer to this is a good one, and it is easy to see why it is so."
MADE_UP: dict[str, Callable[[str, str], str]] = {
    "the data's own answers": lambda prompt, answer: answer,
    "an empty text": lambda prompt, answer: "",
    "the prompt, copied": lambda prompt, answer: prompt,
    "the data's answer, twice": lambda prompt, answer: f"{answer} {answer}",
    "one sentence for all": lambda prompt, answer: SENTENCE,
    "one word, 16 times": lambda prompt, answer: " ".join(["the"] * 16) + ".",
}
Written = tuple[str, str, bool]  # prompt, text, whether it ended


def summary(name: str, written: Sequence[Written]) -> dict[str, Any]:
    """Mean reward and qualities of some texts."""
    rewards = [answer_reward(p, t, ended=e) for p, t, e in written]
    parts = [qualities(p, t, ended=e) for p, t, e in written]
    return {
        "name": name,
        "texts": len(rewards),
        "reward": round(fmean(rewards), 4),
        "sd": round(stdev(rewards), 4),
        "largest": round(max(rewards), 4),
        **{part: round(fmean(one[part] for one in parts), 3) for part in QUALITIES},
    }


def of_model(world: InstructionWorld) -> list[Written]:
    """The model's samples behind the validation prompts."""
    task: Task = InstructionTask(world)
    drawn = samples(world, "validation", cache_dir() / "worlds")
    found = []
    for prompt, texts in drawn.items():
        answers = task.answers([()] * len(texts), texts)
        found += [(prompt, task.text(one), one.ended) for one in answers]
    return found


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()  # fmt: skip
    world = InstructionWorld()
    written = of_model(world)
    wanted = set(split_prompts(world, "validation"))
    own = {text_of(record): str(record.completions[0]) for record in records(world) if text_of(record) in wanted}
    rows = [summary("the model's samples", written)]
    rows += [summary(name, [(p, make(p, a), True) for p, a in own.items()]) for name, make in MADE_UP.items()]
    ranked = sorted(written, key=lambda one: -answer_reward(one[0], one[1], ended=one[2]))
    shown = {"best": ranked[:SHOWN], "worst": ranked[-SHOWN:]}
    texts = {
        name: [
            {"prompt": p, "text": t, "ended": e, "reward": round(answer_reward(p, t, ended=e), 4)} for p, t, e in few
        ]
        for name, few in shown.items()
    }  # fmt: skip
    RESULT.write_text(json.dumps({"rows": rows, **texts}, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {RESULT}; now `make results`")


if __name__ == "__main__":
    main()
