"""Warnings before a run: what experience and the papers say against its data, model and settings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prefopt.data.doctor.findings import MEANINGS
from prefopt.data.tokens import TokenRecord
from prefopt.plugin import Data, comments, traits

FEW = 1_000  # records
SCORED = 8  # answers that tell whether the model ends its turns
FAR = 10  # times above or below the literature's learning rates
LORA = 10  # times the learning rate of full tuning: https://thinkingmachines.ai/blog/lora/
SMALL = 1e9  # weights; below, larger learning rates are common
_NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"


def few_records(count: int, kind: Data) -> Iterator[str]:
    """Too little data to tell an improvement from chance."""
    if count < FEW:
        noun = {Data.PAIRS: "pairs", Data.LISTS: "lists"}.get(kind, "records")
        yield (
            f"{count:,} {noun} to train on, fewer than {FEW:,}: the gain is small and hard to tell from chance; get "
            "more, use LoRA, and judge by several seeds"
        )


def outside_range(loss: Any) -> Iterator[str]:
    """Hyper-parameters outside the range that the plugin's own field comments call useful."""
    said = comments(type(loss))
    for field in dataclasses.fields(loss):
        value, about = getattr(loss, field.name), said.get(field.name, "")
        useful = useful_range(about)
        if useful is None or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not useful[0] <= value <= useful[1]:
            yield f"loss.{field.name}={value:g} is outside its useful range, {useful[0]:g} to {useful[1]:g} ({about})"


def useful_range(comment: str) -> tuple[float, float] | None:
    """(low, high) of a field's comment that says `useful range LOW to HIGH`, or None."""
    bare = re.sub(r"\([^)]*\)", "", comment)
    match = re.search(rf"useful range (?:above |by task, )?({_NUMBER})\s+to\s+({_NUMBER})", bare)
    if match is None:
        return None
    low, high = (float(number.replace(",", "")) for number in match.groups())
    return low, high


def learning_rate(loss: Any, name: str, rate: float, *, adapters: bool, weights: int) -> Iterator[str]:
    """Far from what was published for the method: a factor of ten beyond it, more for adapters and small models."""
    known = traits(loss).learning_rates
    if known is None:
        return
    more = (LORA if adapters else 1) * max(1.0, SMALL / weights)
    if not known.low * (LORA if adapters else 1) / FAR <= rate <= known.high * more * FAR:
        how = " (ten times that with adapters)" if adapters else ""
        yield (
            f"trainer.learning_rate={rate:g} is far from the literature's for {name}: {known.low:g} to {known.high:g} "
            f"for models of billions of weights{how}; {known.source}"
        )


def adapters(model: Any) -> Iterator[str]:
    """Adapters that train nothing."""
    if not any(p.requires_grad for p in model.parameters()):
        yield "no weight is trainable: the adapter's target modules name none of the model's layers"
    for name, peft in getattr(model, "peft_config", {}).items():
        if hasattr(peft, "target_modules") and not peft.target_modules:
            yield f"adapter {name!r}: its target modules are empty; name layers, or `all-linear`"


def not_tuned(model: Any, tokenizer: Any, records: Sequence[TokenRecord], data: Data) -> Iterator[str]:
    """A model that was never taught to answer: preference tuning starts from SFT."""
    if data is Data.DEMONSTRATIONS:
        return  # this is SFT
    remedy = "do SFT on the chosen answers first, or use a method with its own SFT term (orpo, cpo, irpo)"
    if not getattr(tokenizer, "chat_template", None):
        yield f"the tokenizer has no chat template, so this looks like a base model without SFT: {remedy}"
        return
    ends = end_of_turn(model, records)
    meaning = MEANINGS["end_of_turn"]
    if ends is not None and meaning.notice is not None and ends < meaning.notice:
        yield (
            f"the model ends an answer of this data with a probability of {ends:.2g} (median of {SCORED}): a base "
            f"model without SFT, or a chat template that is not its own; {remedy}"
        )


def end_of_turn(model: Any, records: Sequence[TokenRecord]) -> float | None:
    """Median probability of the closing token of a few short answers."""
    from prefopt.engine import score

    if not len(records):
        return None
    few = [records[int(i)] for i in np.linspace(0, len(records) - 1, min(8 * SCORED, len(records)))]
    few = sorted(few, key=lambda r: len(r.prompt) + len(r.completions[0]))[:SCORED]
    few = [dataclasses.replace(r, completions=r.completions[:1], scores=None) for r in few]
    scored = score(model, few, tokens=True)
    return float(np.median(np.exp([one.token[0][-1] for one in scored if one.token is not None])))


def memory(total: float, limit: float, what: str) -> Iterator[str]:
    """It will not fit, or hardly.

    Args:
        total, limit: in GiB.
        what: whose limit it is.
    """
    if total > limit:
        yield (
            f"needs about {total:.1f} GiB, more than the {limit:.1f} GiB of {what}: lower batch.max_tokens, turn on "
            "trainer.activation_checkpointing, or train with LoRA"
        )
    elif total > 0.9 * limit:
        yield f"needs about {total:.1f} of the {limit:.1f} GiB of {what}: too close, the estimate is good to 15 %"
