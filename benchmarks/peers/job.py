"""The job of a benchmarked program and its answer: one run in its own process, on the same data in the same order."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memory import peak_gib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run.

    Attributes:
        model: folder of the model.
        pairs: JSON lines of {prompt, chosen, rejected} strings, in training order.
        method: dpo, ipo, kto, orpo or simpo.
        records: pairs per optimizer step.
        device_records: pairs per forward pass, for programs that do not choose it themselves.
        steps: optimizer steps.
        max_length: tokens of prompt and completion together; no pair is longer.
        threads: number of threads.
        cache: folder for what the program keeps between runs (reference log-probs).
        result: file for the answer.
    """

    model: str
    pairs: str
    method: str
    records: int
    device_records: int
    steps: int
    max_length: int
    threads: int
    cache: str
    result: str


@dataclass(frozen=True, kw_only=True)
class RolloutJob:
    """One training run on the model's own samples.

    Attributes:
        model: folder of the model.
        prompts: JSON lines of {prompt}, in training order.
        samples: samples of each prompt.
        new_tokens: tokens of each sample: none ends by itself, because `end` is never drawn.
        end: the token that would end one.
        records: prompts per optimizer step.
        device_samples: samples per forward pass, for programs that do not choose it themselves.
        steps: optimizer steps.
        threads: number of threads.
        result: file for the answer.
        recompute: compute activations again in the backward, for less memory.
        count: count the floating-point operations, which slows the run.
    """

    model: str
    prompts: str
    samples: int
    new_tokens: int
    end: str
    records: int
    device_samples: int
    steps: int
    threads: int
    result: str
    recompute: bool = False
    count: bool = False


@dataclass(kw_only=True)
class Answer:
    """Cost of a run.

    Attributes:
        step_s: seconds of each optimizer step, from the end of the one before (the first: from the start of training),
            so that data loading, optimizer and logging count.
        total_s: from the loaded model to the end of training, reference and tokenization included.
        peak_gib: peak resident memory of the process.
        loss: loss of the first step, to check that the programs compute the same.
        mean_length: mean tokens of the samples of the last step, for a job that draws some.
        tflop: floating-point operations of the run's matrix products and attention, in 10^12, for a job that counts.
        versions: package versions.
    """

    step_s: list[float]
    total_s: float
    loss: float
    mean_length: float | None = None
    tflop: float | None = None
    peak_gib: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)


class StepClock:
    """Times of optimizer steps, as a transformers callback (from `callback`) or through `start` and `step`."""

    def __init__(self) -> None:
        self.step_s: list[float] = []
        self.loss = float("nan")
        self.mean_length: float | None = None
        self._last = 0.0

    def start(self) -> None:
        self._last = time.perf_counter()

    def step(self) -> None:
        now = time.perf_counter()
        self.step_s.append(now - self._last)
        self._last = now

    def callback(self) -> Any:
        from transformers import TrainerCallback

        clock = self

        class Callback(TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                clock.start()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                clock.step()

            def on_log(
                self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kw: Any
            ) -> None:
                if logs and "loss" in logs and clock.loss != clock.loss:
                    clock.loss = float(logs["loss"])
                if logs and "completions/mean_length" in logs:
                    clock.mean_length = float(logs["completions/mean_length"])

        return Callback()


def serve(run: Callable[[Any], Answer], kind: type[Job] | type[RolloutJob] = Job) -> None:
    """Read the job from standard input, run it, write the answer to its file."""
    job = kind(**json.load(sys.stdin))
    import torch
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(job.threads)
    if isinstance(job, RolloutJob) and job.count:
        with FlopCounterMode(display=False) as counter:
            answer = run(job)
        answer.tflop = counter.get_total_flops() / 1e12
    else:
        answer = run(job)
    answer.peak_gib = peak_gib()
    answer.versions |= {"torch": torch.__version__, "transformers": transformers.__version__}
    Path(job.result).write_text(json.dumps(asdict(answer)))


def read_pairs(job: Job) -> list[dict[str, str]]:
    """The pairs of a job, in order."""
    return [json.loads(line) for line in Path(job.pairs).read_text().splitlines()]


def read_prompts(job: RolloutJob) -> list[str]:
    """The prompts of a job's steps, in order."""
    lines = Path(job.prompts).read_text().splitlines()[: job.records * job.steps]
    return [str(json.loads(line)["prompt"]) for line in lines]


def distinct_words(prompts: list[str], completions: list[str], **_: Any) -> Any:
    """The reward of a job on samples: the share of distinct words, which costs nothing."""
    return [len(set(words)) / max(len(words), 1) for words in map(str.split, completions)]
