"""The doctor: one pass over preference data that reports what is wrong with it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prefopt.data.account import account, pairing_line, stations, winner_side
from prefopt.data.data_config import DataConfig
from prefopt.data.doctor.base_model import Scorer, base_model
from prefopt.data.doctor.findings import MEANINGS, Finding, Histogram, Report, thresholds
from prefopt.data.doctor.image_checks import Images, image_line
from prefopt.data.doctor.near_duplicates import Leaks, NearDuplicates
from prefopt.data.doctor.record_checks import Labels, Marks, RecordCheck, Repetitions, RowFacts
from prefopt.data.doctor.rendering import thinking_lines, token_line
from prefopt.data.doctor.shortcuts import FormatRule, LengthRule, WordRule
from prefopt.data.doctor.token_lengths import TokenLengths
from prefopt.data.reader import read
from prefopt.data.record import Record
from prefopt.data.templates import renderer
from prefopt.data.tokenize import TokenResult, tokenize
from prefopt.data.views import to_view
from prefopt.plugin import Data

__all__ = ["MEANINGS", "Finding", "Histogram", "Report", "examine", "thresholds"]

NO_LIMIT = 2**30


def examine(
    config: DataConfig, *, tokenizer: Any = None, score: Scorer | None = None, limits: dict[str, float] | None = None
) -> Report:
    """Check the data of `config` as it is read, before any view.

    Args:
        config: the data, as for training.
        tokenizer: a transformers tokenizer; without one nothing is reported about tokens.
        score: `prefopt.engine.score` with the model to be tuned, to report how the model rates the data.
        limits: finding -> threshold, over the defaults.

    Raises:
        UserError: data that cannot be read at all.
    """
    found = read(config)
    lengths = LengthRule()
    checks: list[RecordCheck] = [Repetitions(), NearDuplicates(), lengths, *_further_checks(config, tokenizer)]
    for record in found.records:
        for check in checks:
            check.see(record)
    kind = found.records[0].kind.value
    usable = to_view(found.records, None, ties=config.ties, train_on=config.train_on, cache_dir=config.cache_dir)
    report = Report(
        name=Path(str(config.path)).name if config.path else "mixture",
        schema=found.schema,
        kind=kind,
        rows=found.counts["rows"],
        kept=len(usable.records),
        rejections=[*found.rejections, *usable.rejections],
        findings={},
        histograms=[lengths.histogram()],
        account=[],
    )
    result = None if tokenizer is None else tokenize(usable.records, tokenizer, config)
    more = [pairing_line(found.records)] if kind == Data.LISTS.value else []
    report = dataclasses.replace(report, account=[*account(stations(found.counts, usable, result)), *more])
    findings = [finding for check in checks for finding in check.findings()]
    if side := winner_side(found.counts):
        findings.append(Finding(name="winner_side", figure=round(side[0], 4), note=side[1]))
    if result is not None:
        report, in_tokens = _with_tokens(report, usable.records, result, tokenizer, config, score)
        findings += in_tokens
    kept = Finding(name="kept", figure=report.kept, total=report.kept + len(report.rejections))
    size = Finding(name="size", figure=report.kept, note=f"{report.kept} {kind}")
    return dataclasses.replace(report, findings=_limited([kept, size, *findings], limits or {}))


def _further_checks(config: DataConfig, tokenizer: Any) -> list[RecordCheck]:
    """Checks of words, formats and facts; and of prompts that are held out elsewhere."""
    held_out = config.held_out()
    leaks = [Leaks(read(held_out).records)] if held_out else []
    return [WordRule(), FormatRule(), Labels(), RowFacts(), Images(), Marks(_marks(config, tokenizer)), *leaks]


def _marks(config: DataConfig, tokenizer: Any) -> re.Pattern[str] | None:
    """The marks of the tokenizer and its template, which have no place in texts."""
    return renderer(tokenizer, config.template, config.system).marks if tokenizer is not None else None


def _with_tokens(
    report: Report,
    records: Sequence[Record],
    result: TokenResult,
    tokenizer: Any,
    config: DataConfig,
    score: Scorer | None,
) -> tuple[Report, list[Finding]]:
    """The report and the findings about records in tokens."""
    uncut = result.records
    findings: list[Finding] = []
    if result.counts["truncated_prompts"] or "rejected/too_long" in result.counts:
        uncut = tokenize(records, tokenizer, dataclasses.replace(config, max_length=NO_LIMIT)).records
    lines = [token_line(result.records), *image_line(records, tokenizer), *thinking_lines(records, tokenizer, config)]
    report = dataclasses.replace(report, rejections=[*report.rejections, *result.rejections], kept=len(result.records),
                                 account=[*report.account, *lines])  # fmt: skip
    if len(uncut):
        lengths = TokenLengths(uncut)
        findings += lengths.findings(config.max_length)
        report = dataclasses.replace(
            report, histograms=[*report.histograms, lengths.histogram()], costs=lengths.costs()
        )
    if config.truncation != "drop":
        cut = result.counts["truncated_prompts"]
        findings.append(Finding(name="truncated_prompts", figure=cut, total=len(records)))
    if score is not None:
        findings += base_model(score, uncut, config.max_length)
    return report, findings


def _limited(findings: Iterable[Finding], limits: dict[str, float]) -> dict[str, Finding]:
    return {f.name: dataclasses.replace(f, limit=limits.get(f.name)) for f in findings}
