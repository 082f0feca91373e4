"""Measures a policy on any data: held-out pairs, its own texts, a judge, tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.estimate import shares_won
from prefopt.compare.measure_world import by_prompt
from prefopt.compare.spec import MeasureConfig, Measurement
from prefopt.config.run_config import RunConfig
from prefopt.data.doctor.near_duplicates import near_copies
from prefopt.data.images.inputs import decode_prompt, key_of
from prefopt.engine.generation import end_tokens
from prefopt.evaluate.held_out import HeldOut, score
from prefopt.evaluate.judge import encoder, is_callable
from prefopt.evaluate.kl import kl_divergence
from prefopt.evaluate.tasks import run_tasks
from prefopt.evaluate.texts import Sampling, held_out_prompts, write_texts
from prefopt.models.load import load_model
from prefopt.models.model_config import ModelConfig
from prefopt.models.reward_model import is_reward_model
from prefopt.rewards.model import ModelReward
from prefopt.rewards.reward import Answer, answer
from prefopt.runs.resolve_reward import writer_of_run
from prefopt.runs.run_folder import model_path

Floats = NDArray[np.float64]
JUDGED_PROMPTS = 128  # unless `measure.prompts` says otherwise: a judge's scores decide verdicts


def measure(
    config: RunConfig, settings: MeasureConfig, *, policy: Any, tokenizer: Any, records: Sequence[Any]
) -> Measurement:
    """Measure a policy against the model that its training started from; prompts that are nearly the same count once.

    On held-out pairs: `accuracy` (share whose chosen side gained more log-prob than the rejected one),
    `accuracy_sum` and `accuracy_mean` (the likelier side by log-prob and by log-prob per token); a tie is half. Also
    `margin` (nats, of log-ratios), `chosen_logp`, `chosen_change`, `rejected_change` (nats). On the policy's own texts
    at temperature 1: `kl` (nats per text, Rao-Blackwellised over the vocabulary), `length` (tokens), and with a reward
    model as judge `judge`, its score. On tasks: `task/NAME/METRIC`.

    Args:
        config: the configuration of the run.
        settings: prompts, samples, judge, tasks.
        policy: the tuned model.
        tokenizer: its tokenizer.
        records: held-out records in tokens.
    """
    reference = _reference(frozenset(vars(config.model).items()))
    budget = config.batch.budget(policy.device.type)
    tuned, start = (score(model, records, max_tokens=budget) for model in (policy, reference))
    names = near_copies([decode_prompt(tokenizer, record.prompt.tolist()) for record in records])
    alike = [f"{key_of(record.prompt).hex()} {name}" for record, name in zip(records, names, strict=True)]  # one image
    arrays = _pairs(dataclasses.replace(tuned, prompts=alike), start)
    texts: list[dict[str, Any]] = []
    least = JUDGED_PROMPTS if settings.judge else 0
    prompts = held_out_prompts(records, settings.prompts or max(config.evaluation.kl_prompts, least))
    if len(prompts) > 1:
        written, texts = _texts(config, settings, policy, reference, tokenizer, prompts)
        arrays |= written
    figures = {name: float(values.mean()) for name, values in arrays.items()}
    if settings.tasks:
        figures |= run_tasks(policy, tokenizer, settings.tasks)
    return Measurement(figures=figures, arrays=arrays, texts=texts)


def _pairs(policy: HeldOut, start: HeldOut) -> dict[str, Floats]:
    """Return the figures of held-out records, averaged by prompt; those of two sides where every record has both."""
    chosen, rejected = (policy.sums[side] - start.sums[side] for side in ("chosen", "rejected"))
    found: dict[str, Floats] = {}
    if np.isfinite(chosen).all():
        found |= {"chosen_logp": policy.sums["chosen"], "chosen_change": chosen}
    if np.isfinite(rejected).all():
        found["rejected_change"] = rejected
    if len(found) == 3:
        gap = chosen - rejected
        means = {side: policy.sums[side] / policy.tokens[side] for side in ("chosen", "rejected")}
        found |= {
            "accuracy": shares_won(gap),
            "accuracy_sum": shares_won(policy.sums["chosen"] - policy.sums["rejected"]),
            "accuracy_mean": shares_won(means["chosen"] - means["rejected"]),
            "ties": (gap == 0).astype(np.float64),
            "margin": gap,
        }
    return {name: by_prompt(values, policy.prompts) for name, values in found.items()}


def _texts(
    config: RunConfig, settings: MeasureConfig, policy: Any, reference: Any, tokenizer: Any, prompts: list[list[int]]
) -> tuple[dict[str, Floats], list[dict[str, Any]]]:
    """Return the figures of the policy's texts, averaged by prompt, and the first sample of each prompt."""
    each = settings.samples_per_prompt or 1
    repeated = [prompt for prompt in prompts for _ in range(each)]
    sampling = Sampling(max_new_tokens=config.evaluation.max_new_tokens, temperature=1.0, seed=settings.seed)
    written = write_texts(policy, tokenizer, repeated, sampling)
    longest = max(len(p) + len(t) for p, t in zip(repeated, written, strict=True))
    budget = max(config.batch.budget(policy.device.type), longest)
    kl = kl_divergence(policy, reference, repeated, written, max_tokens=budget).exact_vocabulary

    ends = end_tokens(policy, tokenizer)
    answers = [answer(tokenizer, p, t, ends) for p, t in zip(repeated, written, strict=True)]
    asked = [a.prompt_text for a in answers]
    alike = near_copies(asked)

    def averaged(values: Any) -> Floats:
        return by_prompt(np.asarray(values, dtype=np.float64), alike)

    arrays = {"kl": averaged(kl), "length": averaged([len(text) for text in written])}
    if settings.judge and not is_callable(settings.judge):
        arrays["judge"] = averaged(_scores(config, settings.judge, answers))
    kept = len(prompts) if settings.judge else settings.texts  # a judge that compares needs all
    firsts = answers[::each][:kept]
    return arrays, [{"prompt": first.prompt_text, "text": first.text} for first in firsts]


def _scores(config: RunConfig, judge: str, answers: Sequence[Answer]) -> Floats:
    """The scores of a judge that is a model: read at the last token by a decoder, and as text by an encoder."""
    path = model_path(judge)
    if is_reward_model(path):
        return ModelReward(path=path, writer=partial(writer_of_run, config))(answers)
    return encoder(path)([a.prompt_text for a in answers], [a.text for a in answers])


@lru_cache(maxsize=1)
def _reference(settings: frozenset[tuple[str, Any]]) -> Any:
    """Load the reference of a model configuration, given by its fields; kept for the next job."""
    model = ModelConfig(**dict(settings))
    return load_model(model, model.reference) if model.reference else load_model(model)
