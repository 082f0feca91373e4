"""Warns before a run about its data, model and settings, from experience and the papers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prefopt.config.options import ADAPTER_RATE
from prefopt.data.doctor.findings import MEANINGS
from prefopt.data.tokens import TokenRecord
from prefopt.engine.scoring import score
from prefopt.plugin import Data, comments, traits

FEW_RECORDS = 1_000
SCORED = 8  # answers, to see whether the model ends its turns
TOLERANCE = 10  # factor above or below the published learning rates
SMALL = 1e9  # weights; smaller models are trained with larger learning rates
_NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"


def nothing_held_out(held_out: Any) -> Iterator[str]:
    """Warn of a run that cannot show whether it helped."""
    if held_out is None:
        yield (
            "nothing is held out, so nothing will show whether the model is better than before: leave out "
            "data.eval_records=0, or name other records with data.eval_path"
        )


def few_records(count: int, kind: Data) -> Iterator[str]:
    """Warn of too little data to tell an improvement from chance."""
    if count < FEW_RECORDS:
        noun = {Data.PAIRS: "pairs", Data.LISTS: "lists"}.get(kind, "records")
        yield (
            f"{count:,} {noun} to train on, fewer than {FEW_RECORDS:,}: a gain is small and hard to tell from chance; "
            "collect more, use LoRA, and compare several seeds"
        )


def outside_range(loss: Any) -> Iterator[str]:
    """Warn of hyper-parameters outside the useful range in the comments of the plugin's fields."""
    said = comments(type(loss))
    for field in dataclasses.fields(loss):
        value, about = getattr(loss, field.name), said.get(field.name, "")
        useful = useful_range(about)
        if useful is None or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not useful[0] <= value <= useful[1]:
            yield f"loss.{field.name}={value:g} is outside its useful range, {useful[0]:g} to {useful[1]:g} ({about})"


def useful_range(comment: str) -> tuple[float, float] | None:
    """(low, high) of a comment that contains `useful range LOW to HIGH`, or None."""
    bare = re.sub(r"\([^)]*\)", "", comment)
    match = re.search(rf"useful range (?:above |by task, )?({_NUMBER})\s+to\s+({_NUMBER})", bare)
    if match is None:
        return None
    low, high = (float(number.replace(",", "")) for number in match.groups())
    return low, high


def learning_rate(loss: Any, name: str, rate: float, *, adapters: bool, weights: int) -> Iterator[str]:
    """Warn of a rate ten times beyond those published for the method; more is allowed for adapters and small models."""
    known = traits(loss).learning_rates
    if known is None:
        return
    more = (ADAPTER_RATE if adapters else 1) * max(1.0, SMALL / weights)
    if not known.low * (ADAPTER_RATE if adapters else 1) / TOLERANCE <= rate <= known.high * more * TOLERANCE:
        how = " (ten times that with adapters)" if adapters else ""
        yield (
            f"trainer.learning_rate={rate:g} is far from published rates for {name}: {known.low:g} to {known.high:g} "
            f"for models of billions of weights{how}; {known.source}"
        )


def adapters(model: Any) -> Iterator[str]:
    """Warn of adapters that train nothing."""
    if not any(p.requires_grad for p in model.parameters()):
        yield "no weight is trainable: none of the model's layers matches the adapter's target modules"
    for name, peft in getattr(model, "peft_config", {}).items():
        if hasattr(peft, "target_modules") and not peft.target_modules:
            yield f"adapter {name!r} has no target modules: name layers, or `all-linear`"


def not_tuned(model: Any, tokenizer: Any, records: Sequence[TokenRecord], data: Data) -> Iterator[str]:
    """Warn of a base model: preference tuning starts from SFT."""
    if data is Data.DEMONSTRATIONS:
        return  # this is SFT
    remedy = "run SFT on the chosen answers first, or use a method with its own SFT term (orpo, cpo, irpo)"
    if not getattr(tokenizer, "chat_template", None):
        yield f"the tokenizer has no chat template, so this is probably a base model without SFT: {remedy}"
        return
    ends = end_of_turn(model, records)
    meaning = MEANINGS["end_of_turn"]
    if ends is not None and meaning.notice is not None and ends < meaning.notice:
        yield (
            f"the model ends an answer of this data with a probability of {ends:.2g} (median of {SCORED}): a base "
            f"model without SFT, or a chat template that is not its own; {remedy}"
        )


def end_of_turn(model: Any, records: Sequence[TokenRecord]) -> float | None:
    """The median probability of the closing token of a few short answers."""
    if not len(records):
        return None
    few = [records[int(i)] for i in np.linspace(0, len(records) - 1, min(8 * SCORED, len(records)))]
    few = sorted(few, key=lambda r: len(r.prompt) + len(r.completions[0]))[:SCORED]
    few = [dataclasses.replace(r, completions=r.completions[:1], scores=None) for r in few]
    scored = score(model, few, tokens=True)
    return float(np.median(np.exp([one.token[0][-1] for one in scored if one.token is not None])))


def memory(total: float, limit: float, what: str) -> Iterator[str]:
    """Warn of a run that needs more memory than there is, or nearly all of it.

    Args:
        total, limit: the memory that is needed and that is free, in GiB.
        what: the device.
    """
    if total > limit:
        yield (
            f"needs about {total:.1f} GiB, more than the {limit:.1f} GiB of {what}: lower batch.max_tokens, turn on "
            "trainer.activation_checkpointing, or train with LoRA"
        )
    elif total > 0.9 * limit:
        yield f"needs about {total:.1f} of the {limit:.1f} GiB of {what}: too close, the estimate may be off by 15 %"
