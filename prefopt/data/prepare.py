"""Prepares data for training: read, view, tokenize, hold out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.account import stations, winner_side
from prefopt.data.data_config import DataConfig
from prefopt.data.jinja_source import CLOCK, template_source
from prefopt.data.reader import ReadResult, read
from prefopt.data.record import Rejection
from prefopt.data.token_table import TokenTable
from prefopt.data.tokenize import TokenResult, tokenize
from prefopt.data.views import to_view
from prefopt.errors import UserError
from prefopt.plugin import Data

FEW_RECORDS = 1000
ONE_SIDED = 0.6  # share of verdicts for one place
HELD_OUT = 0.05  # share of the prompts that a run holds out by default,
FEWEST, MOST = 20, 500  # of them at least and at most,
LARGEST = 0.2  # and never more than this share
RARE_LABEL = 0.2  # share of a label below which its weight matters
UNKNOWN = 0.01  # share of tokens that stand for what the tokenizer does not know


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The data of a run.

    Attributes:
        train, eval: token records; `eval` is None if nothing is held out.
        rejections: every row and record that is in neither, with its reason.
        counts: `rows`, `records`, `train`, `eval`, `truncated_prompts`, `rejected/REASON` for each reason.
        schema: the schema that was read.
        warnings: what to know before training; `prefopt data check` reports more.
    """

    train: TokenTable
    eval: TokenTable | None
    rejections: list[Rejection]
    counts: dict[str, int]
    schema: str
    warnings: list[str]


def prepare(
    config: DataConfig, tokenizer: Any, data: Data | None, *, control_text: tuple[str, str] | None = None,
    hold_out: bool = False,
) -> Prepared:  # fmt: skip
    """Prepare token records for a loss on `data`.

    Args:
        config: the settings.
        tokenizer: the model's.
        data: what the loss reads; None leaves records what they are.
        control_text: what single completions begin with.
        hold_out: hold out `default_positions` where the settings do not say what to hold out.

    Raises:
        UserError: see `read`, `to_view` and `tokenize`; or no record is left.
    """
    found = read(config)
    result, log, counts = _tokens(found, tokenizer, config, data, control_text)
    train, held_out = result.records, None
    if not train:
        raise UserError(f"no record is left to train on ({_summary(counts)})")
    if other := config.held_out():
        other_result, other_log, other_counts = _tokens(read(other), tokenizer, other, data, control_text)
        held_out = other_result.records
        log += other_log
        counts |= {f"eval_{name}": count for name, count in other_counts.items()}
        train, leaked = _without_prompts_of(train, held_out)
        log += leaked
        counts["rejected/prompt_held_out"] = len(leaked)
    elif config.eval_records or config.eval_fraction:
        wanted = config.eval_records or round(config.eval_fraction * len(train))
        out = held_out_positions(train.prompt_keys(), wanted)
        train, held_out = train.select(np.flatnonzero(~out)), train.select(np.flatnonzero(out))
    elif hold_out and config.eval_records is None:
        out = default_positions(train.prompt_keys())
        counts["held_out_by_default"] = int(out.sum())
        if out.any():
            train, held_out = train.select(np.flatnonzero(~out)), train.select(np.flatnonzero(out))
    counts |= {"train": len(train), "eval": len(held_out) if held_out is not None else 0}
    if not train:
        raise UserError(f"no record is left to train on ({_summary(counts)})")
    warnings = _warnings(train, len(log), data, counts)
    unknown = tokenizer.unk_token_id
    if unknown not in (None, tokenizer.eos_token_id) and (share := train.share_of(unknown)) > UNKNOWN:
        warnings.append(f"{share:.0%} of the tokens of completions are {tokenizer.unk_token!r}: the tokenizer does not "
                        "know these texts, and nothing is learned of what it does not know")  # fmt: skip
    if CLOCK in (template_source(config.template, tokenizer) or ""):
        warnings.append(f"the chat template writes today's date, which is data.date={config.date} in every text")
    return Prepared(train=train, eval=held_out, rejections=log, counts=counts, schema=found.schema, warnings=warnings)


def _warnings(train: TokenTable, rejected: int, data: Data | None, counts: dict[str, int]) -> list[str]:
    """The checks of the doctor that cost nothing; what they find is also counted.

    Raises:
        UserError: all labels are the same, and the loss compares them.
    """
    found = []
    if len(train) < FEW_RECORDS:
        found.append(f"{len(train)} records: results from fewer than {FEW_RECORDS:,} are mostly noise")
    if rejected > len(train):
        found.append(
            f"more rows were rejected ({rejected}) than kept ({len(train)}): `prefopt data check` lists the reasons"
        )
    if marked := train.marked():
        counts["template_marks"] = marked
        found.append(f"{marked} records have marks of a chat template in their texts, which the template of this run "
                     "prints again: extract the turns instead (`prefopt data check` lists the records)")  # fmt: skip
    if lower := train.scored_lower():
        counts["chosen_scored_lower"] = lower
        found.append(f"{lower} pairs have the higher score on the rejected side (`prefopt data check` lists them)")
    if doubted := train.doubted():
        counts["margin_against_label"] = doubted
        found.append(
            f"{doubted} pairs have a margin below 0 or a probability below 1/2 (`prefopt data check` lists them)"
        )
    if (side := winner_side(counts)) and side[0] > ONE_SIDED:
        found.append(f"{side[1]}: check what the codes mean, and whether the judge saw both orders")
    if data is Data.UNPAIRED and train.kind is Data.UNPAIRED:
        good = train.desirable_share()
        if good in (0.0, 1.0):
            which = "desirable" if good else "undesirable"
            raise UserError(
                f"every completion is labelled {which}: a loss on labels needs both (for good ones, loss=sft)"
            )
        if not RARE_LABEL <= good <= 1 - RARE_LABEL:
            found.append(f"{good:.1%} of the completions are desirable: raise the weight of the rarer label, "
                         "`prefopt data check` prints the weights")  # fmt: skip
    return found


def held_out_positions(prompt_keys: NDArray[np.int64], wanted: int) -> NDArray[np.bool_]:
    """(N,) bool: about `wanted` records, whole prompts at a time, drawn by the prompts alone.

    The order of the records does not matter; a prompt with more records than are still wanted is skipped.

    Raises:
        UserError: all records would be held out.
    """
    if wanted >= len(prompt_keys):
        raise UserError(f"cannot hold out {wanted} of {len(prompt_keys)} records: nothing would be left to train on")
    keys, inverse, sizes = np.unique(prompt_keys, return_inverse=True, return_counts=True)
    taken = np.zeros(len(keys), bool)
    room = wanted
    for i in np.flatnonzero(sizes <= wanted):  # keys are hashes: a random order that never changes
        if sizes[i] <= room:
            taken[i] = True
            room -= sizes[i]
        if not room:
            break
    return taken[inverse]


def default_positions(prompt_keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) bool: the records that a run holds out by default, all those of a share of the prompts.

    As `held_out_positions`, the draw depends on the prompts alone. Prompts with a larger share of the records than
    others have are not drawn, and none are of fewer than five.
    """
    _, inverse, sizes = np.unique(prompt_keys, return_inverse=True, return_counts=True)
    wanted = min(max(FEWEST, round(HELD_OUT * len(sizes))), MOST, int(LARGEST * len(sizes)))
    small = np.flatnonzero(sizes <= max(np.median(sizes), HELD_OUT * LARGEST * len(prompt_keys)))
    taken = np.zeros(len(sizes), bool)
    taken[small[:wanted]] = True
    return taken[inverse]


def _tokens(
    found: ReadResult, tokenizer: Any, config: DataConfig, data: Data | None, control_text: tuple[str, str] | None
) -> tuple[TokenResult, list[Rejection], dict[str, int]]:
    view = to_view(found.records, data, pairs_from=config.pairs_from, ties=config.ties, train_on=config.train_on,
                   desirable_above=config.desirable_above, split_pairs=control_text is not None,
                   cache_dir=config.cache_dir)  # fmt: skip
    if not view.records:
        raise UserError(f"no record is left{f' as {data.value}' if data else ''} ({_summary(view.counts)})")
    result = tokenize(view.records, tokenizer, config, control_text=control_text)
    counts = stations(found.counts, view, result)
    return result, [*found.rejections, *view.rejections, *result.rejections], counts


def _without_prompts_of(train: TokenTable, other: TokenTable) -> tuple[TokenTable, list[Rejection]]:
    leaks = np.isin(train.prompt_keys(), other.prompt_keys())
    sources = train.table.column("source").take(train.rows[leaks]).to_pylist()
    rejections = [
        Rejection(source=source, id=name, reason="prompt_held_out", detail="its prompt is held out")
        for source, name in zip(sources, train.select(np.flatnonzero(leaks)).ids(), strict=True)
    ]
    return train.select(np.flatnonzero(~leaks)), rejections


def _summary(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
