"""The doctor: one pass over any data, and what is wrong with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefopt.data.config import DataConfig
from prefopt.data.doctor.base_model import base_model
from prefopt.data.doctor.checks import Check, Labels, Marks, Repetitions
from prefopt.data.doctor.findings import MEANINGS, Finding, Histogram, Report, thresholds
from prefopt.data.doctor.lengths import TokenLengths
from prefopt.data.doctor.near import Leaks, NearDuplicates
from prefopt.data.doctor.rules import Formats, Lengths, Words
from prefopt.data.read import read
from prefopt.data.tokenize import tokenize

__all__ = ["MEANINGS", "Finding", "Histogram", "Report", "examine", "thresholds"]

NO_LIMIT = 2**30


def examine(
    config: DataConfig, *, tokenizer: Any = None, model: Any = None, limits: dict[str, float] | None = None
) -> Report:
    """Look at the data of `config` as it is read, before any view.

    Args:
        config: the data, as for training.
        tokenizer: a transformers tokenizer; without one nothing is said about tokens.
        model: a causal language model, to hear what it thinks of the data.
        limits: finding -> threshold, over the defaults.

    Raises:
        UserError: data that cannot be read at all.
    """
    found = read(config)
    lengths = Lengths()
    checks: list[Check] = [Repetitions(), NearDuplicates(), lengths, Words(), Formats(), Labels(), Marks()]
    if held_out := config.held_out():
        checks.append(Leaks(read(held_out).records))
    for record in found.records:
        for check in checks:
            check.see(record)
    findings = [finding for check in checks for finding in check.findings()]
    rejections, histograms, costs, kept = list(found.rejections), [lengths.histogram()], [], len(found.records)

    if tokenizer is not None:
        result = tokenize(found.records, tokenizer, config)
        whole = result.records
        if result.counts["truncated_prompts"] or "rejected/too_long" in result.counts:
            whole = tokenize(found.records, tokenizer, dataclasses.replace(config, max_length=NO_LIMIT)).records
        rejections += result.rejections
        kept = len(result.records)
        if len(whole):
            sizes = TokenLengths(whole)
            findings += sizes.findings(config.max_length)
            histograms.append(sizes.histogram())
            costs = sizes.costs()
        if config.truncation != "drop":
            cut = result.counts["truncated_prompts"]
            findings.append(Finding(name="truncated_prompts", figure=cut, total=len(found.records)))
        if model is not None:
            findings += base_model(model, whole, config.max_length)

    rows = found.counts["rows"]
    size = f"{kept} {found.records[0].kind.value}"
    findings = [
        Finding(name="kept", figure=kept, total=kept + len(rejections)),
        Finding(name="size", figure=kept, note=size),
        *findings,
    ]
    return Report(
        name=Path(str(config.path)).name if config.path else "mixture",
        schema=found.schema,
        kind=found.records[0].kind.value,
        rows=rows,
        kept=kept,
        rejections=rejections,
        findings=_limited(findings, limits or {}),
        histograms=histograms,
        costs=costs,
    )


def _limited(findings: Iterable[Finding], limits: dict[str, float]) -> dict[str, Finding]:
    return {f.name: dataclasses.replace(f, limit=limits.get(f.name)) for f in findings}
