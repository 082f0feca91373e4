"""Measures on any data, where no exact reward is known: held-out pairs, the policy's own texts, a judge, tasks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefopt.compare.measure_world import by_prompt
from prefopt.compare.spec import MeasureConfig, Measured
from prefopt.evaluate.held_out import HeldOut, score
from prefopt.evaluate.judge import is_callable, reward_model
from prefopt.evaluate.texts import Sampling, held_out_prompts, write_texts

if TYPE_CHECKING:
    from prefopt.config.run_config import RunConfig

Floats = NDArray[np.float64]


def measure(
    config: RunConfig, settings: MeasureConfig, *, policy: Any, tokenizer: Any, records: Sequence[Any]
) -> Measured:
    """A policy against the model that its training started from; every prompt counts once, however many records it has.

    Of held-out pairs: `accuracy` (share whose chosen side gained more log-prob than the rejected one; a tie is half),
    `accuracy_sum` and `accuracy_mean` (the likelier side by log-prob and by log-prob per token; a tie is no win),
    `margin` (nats, of log-ratios), `chosen_logp`, `chosen_change`, `rejected_change` (nats). Of the policy's own texts
    at temperature 1: `kl` (nats a text, Rao-Blackwellised over the vocabulary), `length` (tokens); with a reward model
    as judge `judge`, its score. Of tasks: `task/NAME/METRIC`.

    Args:
        config: of the run.
        settings: prompts, samples, judge, tasks.
        policy: the tuned model.
        tokenizer: its tokenizer.
        records: held-out records in tokens.
    """
    reference = _reference(_Start(config))
    budget = config.batch.budget(policy.device.type)
    tuned, start = (score(model, records, max_tokens=budget) for model in (policy, reference))
    arrays = _pairs(tuned, start)
    texts: list[dict[str, Any]] = []
    prompts = held_out_prompts(records, settings.prompts or config.evaluation.kl_prompts)
    if len(prompts) > 1:
        written, texts = _texts(config, settings, policy, reference, tokenizer, prompts)
        arrays |= written
    figures = {name: float(values.mean()) for name, values in arrays.items()}
    if settings.tasks:
        from prefopt.evaluate.tasks import run_tasks

        figures |= run_tasks(policy, tokenizer, settings.tasks)
    return Measured(figures=figures, arrays=arrays, texts=texts)


def _pairs(policy: HeldOut, start: HeldOut) -> dict[str, Floats]:
    """Figures of held-out records, the mean of each prompt's; those of two sides where every record has them."""
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
            "accuracy": (gap > 0) + 0.5 * (gap == 0),
            "accuracy_sum": (policy.sums["chosen"] > policy.sums["rejected"]).astype(np.float64),
            "accuracy_mean": (means["chosen"] > means["rejected"]).astype(np.float64),
            "margin": gap,
        }
    return {name: by_prompt(values, policy.prompts) for name, values in found.items()}


def _texts(
    config: RunConfig, settings: MeasureConfig, policy: Any, reference: Any, tokenizer: Any, prompts: list[list[int]]
) -> tuple[dict[str, Floats], list[dict[str, Any]]]:
    """Figures of the policy's texts, the mean of each prompt's samples, and the first sample of each prompt."""
    from prefopt.evaluate.kl import divergence

    each = settings.samples_per_prompt or 1
    repeated = [prompt for prompt in prompts for _ in range(each)]
    sampling = Sampling(max_new_tokens=config.evaluation.max_new_tokens, temperature=1.0, seed=settings.seed)
    written = write_texts(policy, tokenizer, repeated, sampling)
    longest = max(len(p) + len(t) for p, t in zip(repeated, written, strict=True))
    budget = max(config.batch.budget(policy.device.type), longest)
    kl = divergence(policy, reference, repeated, written, max_tokens=budget).exact_vocabulary

    def of_samples(values: Any) -> Floats:
        means: Floats = np.asarray(values, dtype=np.float64).reshape(len(prompts), each).mean(1)
        return means

    arrays = {"kl": of_samples(kl), "length": of_samples([len(text) for text in written])}
    asked = [tokenizer.decode(prompt) for prompt in repeated]
    said = [tokenizer.decode(text, skip_special_tokens=True) for text in written]
    if settings.judge and not is_callable(settings.judge):
        arrays["judge"] = of_samples(reward_model(settings.judge)(asked, said))
    kept = len(prompts) if settings.judge else settings.texts  # a judge that compares needs all
    texts = [{"prompt": asked[i * each], "text": said[i * each]} for i in range(min(kept, len(prompts)))]
    return arrays, texts


class _Start:
    """A configuration that a cache finds by its model."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.name = repr(config.model)

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Start) and self.name == other.name


@lru_cache(maxsize=1)
def _reference(start: _Start) -> Any:
    from prefopt.models.load import load_model

    model = start.config.model
    return load_model(model, model.reference) if model.reference else load_model(model)
