"""Holds the settings of the Hydra group `data` and their defaults."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from omegaconf import MISSING, OmegaConf

from prefopt.common.option_limits import Limits, at_least, check_limits, one_of
from prefopt.data.fields import code_of
from prefopt.data.row_facts import reserved
from prefopt.data.world_names import WORLDS
from prefopt.errors import UserError

SIDES = ("first", "second", "tie")
MEANINGS = (*SIDES, "desirable", "undesirable")
FORMAT = ("template", "date", "chat_template_kwargs", "system")  # options of how a model's prompts are written


@dataclass(kw_only=True)
class Source:
    """One data set of a mixture."""

    path: str = MISSING  # file, folder or hub name
    weight: float = 1.0  # passes per epoch: 1 all of it, 0.5 half of it, 2 all of it twice
    schema: str = "auto"
    fields: dict[str, str] = field(default_factory=dict)
    verdicts: dict[Any, str] = field(default_factory=dict)
    ignore: list[str] = field(default_factory=list)
    ended: bool = True
    split: str | None = None
    subset: str | None = None


@dataclass(kw_only=True)
class DataConfig:
    """The data to train on, its shape, and its length in tokens.

    `path` is a file (.json, .jsonl, .parquet, .csv, .arrow, each also .gz or .zst), a folder of such files or one that
    `datasets` saved, or a name on the hub. Instead of it, `mixture` gives several weighted sources.
    """

    LIMITS: ClassVar[Limits] = {
        "truncation": one_of("drop", "keep_end", "keep_start"),
        "pairs_from": one_of("best_worst", "all", "adjacent"),
        "annotators": one_of("auto", "merge", "separate"),
        "ties": one_of("auto", "drop", "keep", "split"),
        "train_on": one_of("all_turns", "last_turn"),
        "system": one_of("keep", "merge", "drop"),
        "eval_fraction": at_least(0, below=1),
        "eval_records": at_least(0),
        "max_length": at_least(2),
        "max_records": at_least(1, otherwise="null for all"),
        "num_proc": at_least(1, otherwise="null to choose by the number of records"),
    }

    path: str | None = None
    world: dict[str, Any] = field(default_factory=dict)  # path=world: knobs of `prefopt.worlds`: docs/world.md
    mixture: list[Source] = field(default_factory=list)
    schema: str = "auto"  # a name of `prefopt.data.schemas.SCHEMAS`, or auto: recognised from the columns
    fields: dict[str, str] = field(default_factory=dict)  # the schema's column -> the file's column
    verdicts: dict[Any, str] = field(default_factory=dict)  # what codes mean: {1: first, 2: second}, {5: desirable}
    ignore: list[str] = field(default_factory=list)  # columns, and keys of turns, to train without, such as [tools]
    ended: bool = True  # false: completions do not end their turns (steps, cut texts); the column `ended` overrides
    annotators: str = "auto"  # auto (one pair of rows that name their annotator) | merge (of all rows) | separate
    split: str | None = None  # hub sets and saved folders only; None takes "train", or the only one there is
    subset: str | None = None  # hub sets with several configurations
    streaming: bool = False  # hub sets: read row by row over the network instead of downloading the set
    max_records: int | None = None  # use only the first records

    eval_path: str | None = None  # held-out records from another file
    eval_split: str | None = None  # held-out records from another split of the same set
    eval_records: int | None = None  # records to hold out, whole prompts at a time; null: 5 % of the prompts in a run
    eval_fraction: float = 0.0  # share of the records to hold out

    pairs_from: str | None = None  # best_worst | all | adjacent: how a pairs loss reads ranked lists
    ties: str = "auto"  # auto (keep for a loss that reads them, else drop) | drop | keep | split (both orders, half)
    train_on: str | None = None  # all_turns | last_turn of the assistant; null: see docs/data.md
    desirable_above: float | None = None  # the score above which a completion of a list counts as desirable

    template: str = "auto"  # auto (the model's own, else plain) | plain | a named one | a .jinja file
    date: str = "2024-07-26"  # what templates that write today's date write, whatever the day
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # for the template, such as enable_thinking
    system: str = "keep"  # keep | merge (into the first user turn, for templates without system turns) | drop
    max_length: int = 1024  # tokens of the prompt and its longest completion
    truncation: str = "drop"  # drop the record | keep_end | keep_start of the prompt; completions are never cut

    num_proc: int | None = None  # processes for tokenization; None chooses by the number of records
    cache_dir: str | None = None  # None: $PREFOPT_CACHE/data, or ~/.cache/prefopt/data

    def check(self) -> None:
        """Raise UserError where settings are out of range or exclude each other."""
        check_limits(self.LIMITS, self, "data")
        if self.world:
            raise UserError(f"data.world is for the paths world and world/instructions, not for data.path={self.path}")
        if bool(self.path) == bool(self.mixture):
            raise UserError("give data.path=FILE_FOLDER_OR_HUB_NAME (or data.mixture, but not both)")
        if unknown := [v for source in self.sources() for v in source.verdicts.values() if v not in MEANINGS]:
            raise UserError(
                f"data.verdicts has the meaning {unknown[0]!r}; give each code first, second or tie, or "
                "desirable or undesirable where it is about one answer"
            )
        held_out = {"eval_path": self.eval_path, "eval_split": self.eval_split,
                    "eval_records": self.eval_records, "eval_fraction": self.eval_fraction}  # fmt: skip
        if len(given := [f"data.{name}" for name, value in held_out.items() if value]) > 1:
            raise UserError(f"{' and '.join(given)} exclude each other: choose one way to hold out records")
        if self.eval_split and self.mixture:
            raise UserError(
                "data.eval_split needs data.path; hold out of a mixture with data.eval_path or eval_records"
            )
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError as error:
            raise UserError(f"data.date={self.date} is not a date such as 2024-07-26") from error
        if wrong := reserved(self.chat_template_kwargs):
            raise UserError(f"data.chat_template_kwargs has {wrong!r}, which prefopt gives the template itself")

    @property
    def is_world(self) -> bool:
        """Whether `path` names a world that prefopt builds, whose reward is exact, and no file."""
        return self.path in WORLDS

    def held_out(self) -> DataConfig | None:
        """The settings of a separate held-out set (`eval_path`, `eval_split`), or None."""
        if not (self.eval_path or self.eval_split):
            return None
        own: dict[str, Any] = {"eval_path": None, "eval_split": None, "max_records": None, "mixture": []}
        if self.eval_path:
            return replace(self, path=self.eval_path, split=None, **own)
        return replace(self, split=self.eval_split, **own)

    def sources(self) -> list[Source]:
        """The sources to read: those of the mixture, or `path` alone."""
        if not self.mixture:
            return [Source(path=str(self.path), schema=self.schema, fields=dict(self.fields),
                           verdicts=_codes(self.verdicts), ignore=list(self.ignore), ended=self.ended,
                           split=self.split, subset=self.subset)]  # fmt: skip
        sources = [source if isinstance(source, Source) else _source(source) for source in self.mixture]
        return [
            replace(
                source,
                verdicts=_codes(source.verdicts or self.verdicts),
                ignore=[*source.ignore, *self.ignore],
                ended=source.ended and self.ended,
            )
            for source in sources
        ]


def _codes(verdicts: dict[Any, str]) -> dict[str, str]:
    """The codes as texts, the same whatever their type."""
    return {code_of(code): side for code, side in verdicts.items()}


def _source(settings: Any) -> Source:
    merged: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Source), settings))
    assert isinstance(merged, Source)
    return merged
