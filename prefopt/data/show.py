"""Prints one record as the model sees it, in colour."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.text import Text as Styled

from prefopt.common.escaping_console import Console
from prefopt.data.data_config import DataConfig
from prefopt.data.doctor.words import turns
from prefopt.data.images.image_files import FILES, readable
from prefopt.data.images.image_places import images_of
from prefopt.data.images.inputs import inputs_of
from prefopt.data.record import Record, Rejection, RowError, Text
from prefopt.data.tokenize import Encoder, tokenize
from prefopt.errors import UserError

TEMPLATE, PROMPT, GIVEN, TRAINED, IMAGE = "magenta", "dim", "cyan", "green", "yellow"
SIDES = {"pairs": ("chosen", "rejected"), "unpaired": ("completion",), "demonstrations": ("completion",)}


def find(records: Sequence[Record], rejections: Sequence[Rejection], row: str) -> Record:
    """The record with this id, row number, or `file:row`.

    Raises:
        UserError: no record; if the row was rejected, with the reason.
    """
    for record in records:
        if row in (record.id, record.source) or (row.isdigit() and record.source.endswith(f":{row}")):
            return record
    for rejection in rejections:
        if row in (rejection.id, rejection.source) or (row.isdigit() and rejection.source.endswith(f":{row}")):
            raise UserError(f"row {rejection.source} was rejected as {rejection.reason}: {rejection.detail}")
    rows = [record.source for record in records] + [rejection.source for rejection in rejections]
    last = max(rows, key=lambda source: int(source.rpartition(":")[2]) if source.rpartition(":")[2].isdigit() else -1)
    raise UserError(f"no record {row!r}: give an id, a row number counted from 0 (the last is {last}), or FILE:ROW")


def show(record: Record, tokenizer: Any | None, config: DataConfig, console: Console) -> None:
    """Print a record as tokens, or as text without a tokenizer."""
    console.print(Styled(" · ".join(_facts(record)), style="bold"))
    names = SIDES.get(record.kind.value) or tuple(f"completion {k}" for k in range(len(record.completions)))
    if tokenizer is None:
        _part(console, "prompt", record.prompt)
        for name, completion in zip(names, record.completions, strict=True):
            _part(console, name, completion)
        console.print(Styled("give --model or --tokenizer to see tokens", style="dim"))
        return
    encoder = Encoder(tokenizer, config)
    rejected = tokenize([record], tokenizer, config).rejections
    try:
        prompt, completions = encoder.encode(record)
    except RowError as error:
        raise UserError(
            f"record {record.id} ({record.source}) is rejected as {error.reason}: {error.detail}"
        ) from error
    parts = (
        (TEMPLATE, "template"),
        (PROMPT, "prompt, masked"),
        (TRAINED, "completion, trained"),
        (GIVEN, "given, masked"),
    )
    legend = Styled("  ").join(Styled.assemble(("■ ", style), meaning) for style, meaning in parts)
    console.print(legend + Styled("  │ a token ends"))
    console.print(Styled(f"\nprompt: {len(prompt)} tokens", style="bold"))
    console.print(_prompt(tokenizer, prompt))
    open_ones = [not ended for ended in record.ended or (True,) * len(names)]
    for name, ids, is_open in zip(names, completions, open_ones, strict=True):
        trained = sum(token >= 0 for token in ids)
        size = f"{len(ids)} tokens" + (f", {trained} trained" if trained < len(ids) else "")
        console.print(Styled(f"\n{name}: {size}" + (", open" if is_open else ""), style="bold"))
        shown = Styled()
        for given, span in groupby(ids, lambda token: token < 0):
            shown += _tokens(tokenizer, [~t if given else t for t in span], GIVEN if given else TRAINED)
        console.print(shown)
    longest = len(prompt) + max(map(len, completions), default=0)
    with_completion = " with the longest completion" if completions else ""
    console.print(Styled(f"\n{longest} tokens{with_completion}; data.max_length={config.max_length}"))
    for rejection in rejected:
        console.print(Styled(f"rejected as {rejection.reason}: {rejection.detail}", style="red"))


def _facts(record: Record) -> list[str]:
    """What a record is, in words."""
    facts = [record.kind.value, f"id {record.id}", record.source]
    facts += [f"desirable {record.desirable}"] if record.desirable is not None else []
    facts += [f"scores {', '.join(f'{s:g}' for s in record.scores)}"] if record.scores else []
    facts += [f"{name} {value:g}" for name in ("margin", "probability") if (value := getattr(record, name)) is not None]
    for digest in images_of(record.prompt):
        file = FILES[digest]
        facts.append(f"image {file.width}x{file.height} {file.path}")
    facts += [f"weight {record.weight:g}"] if record.weight != 1 else []
    facts += [f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in record.arguments.items()]
    return facts


def _prompt(tokenizer: Any, ids: Sequence[int]) -> Styled:
    """The tokens of a prompt, with the number of an image's tokens in place of them."""
    inputs, shown = inputs_of(tokenizer), Styled()
    for is_image, held in groupby(ids, lambda token: token < 0):
        span = list(held)
        if is_image and inputs is not None:
            token = tokenizer.decode([inputs.token_id])
            shown.append(f"[{len(span)} × {token}]│", style=f"bold {IMAGE}")
        else:
            shown += _tokens(tokenizer, span, PROMPT)
    return shown


def _tokens(tokenizer: Any, ids: Sequence[int], style: str) -> Styled:
    special = set(tokenizer.all_special_ids)
    shown = Styled()
    for text, is_special in _pieces(tokenizer, ids, special):
        shown.append(text, style=f"bold {TEMPLATE}" if is_special else style)
        shown.append("│", style="bright_black")
        if text.endswith("\n"):
            shown.append("\n")
    return shown


def _pieces(tokenizer: Any, ids: Sequence[int], special: set[int]) -> list[tuple[str, bool]]:
    """(text, whether it is special) of each token; tokens that make up one character are joined."""
    pieces: list[tuple[str, bool]] = []
    held: list[int] = []
    for i, token in enumerate(ids):
        held.append(token)
        text = tokenizer.decode(held, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if "\ufffd" in text and len(held) < 8 and i + 1 < len(ids):
            continue
        pieces.append((text.replace("\n", "⏎\n") if text.endswith("\n") else text, token in special))
        held = []
    return pieces


def _part(console: Console, name: str, text: Text) -> None:
    console.print(Styled(f"\n{name}", style="bold"))
    if isinstance(text, str):
        console.print(Styled(readable(text)))
        return
    for turn, said in zip(text, turns(text), strict=True):
        console.print(Styled.assemble((f"{turn['role']}: ", TEMPLATE), said))
