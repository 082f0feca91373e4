"""Tokenizes records: the prompt once, then each completion, which ends with exactly one end token."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefopt.common.cache import cached_folder
from prefopt.common.digest import of_json
from prefopt.common.versions import version_of
from prefopt.data.answers import RenderedAnswer
from prefopt.data.data_config import DataConfig
from prefopt.data.fields import blank
from prefopt.data.images.expand import expanded
from prefopt.data.images.image_places import images_of
from prefopt.data.images.inputs import Expansion, inputs_of, remember
from prefopt.data.make import content_hash
from prefopt.data.record import Record, Rejection, RowError, Text
from prefopt.data.record_table import RECORDS, RecordTable, code_key, data_cache, decode, open_arrow, reading
from prefopt.data.templates import Chat, Plain, Rendered, renderer
from prefopt.data.token_table import SCHEMA, TokenTable
from prefopt.data.tokens import as_given, token_ids
from prefopt.data.truncate import shorter_prompts
from prefopt.errors import UserError, first_line, is_panic
from prefopt.plugin import Data

BATCH_ROWS = 256
FIRST = 8  # tokens of a completion that are decoded first
WORKER_ROWS = 10_000  # minimum per process; below, starting one costs more than it saves


@dataclass(frozen=True, kw_only=True)
class TokenResult:
    """Token records, and the records that were rejected."""

    records: TokenTable
    rejections: list[Rejection]
    counts: dict[str, int]


def tokenize(
    records: Sequence[Record], tokenizer: Any, config: DataConfig, *, control_text: tuple[str, str] | None = None
) -> TokenResult:
    """Tokenize records.

    Args:
        records: of any kind.
        tokenizer: a transformers tokenizer.
        config: template, length limit, truncation.
        control_text: (desirable, undesirable) texts; that of its label begins the completion of each UNPAIRED record.

    Raises:
        UserError: a tokenizer without an end token, or an unknown template.
    """
    encoder = Encoder(tokenizer, config, control_text)
    if isinstance(records, RecordTable) and records.folder:
        table = _on_disk(records, records.folder, encoder, config)
    else:
        rows = [row for batch in _chunks(records) for row in encoder.rows(batch)]
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
    return _result(table)


def digest_of_tokenizer(tokenizer: Any) -> str:
    """The digest of all that a text's tokens depend on."""
    return of_json([_lasting(tokenizer), tokenizer.special_tokens_map])


def same_tokens(one: Any, other: Any) -> bool:
    """Whether two tokenizers give the same tokens for every text, and end texts with the same one."""
    facts = [(_lasting(tokenizer), tokenizer.bos_token, tokenizer.eos_token) for tokenizer in (one, other)]
    return bool(facts[0] == facts[1])


def _lasting(tokenizer: Any) -> Any:
    """The settings of a tokenizer, but for padding and truncation, which calls set."""
    found = _backend(tokenizer)
    if not isinstance(found, dict):
        return found
    return {name: value for name, value in found.items() if name not in ("padding", "truncation")}


def _backend(tokenizer: Any) -> Any:
    return json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else repr(tokenizer)


class Encoder:
    """Turns records into rows of `prefopt.data.token_table.SCHEMA`."""

    def __init__(self, tokenizer: Any, config: DataConfig, control_text: tuple[str, str] | None = None) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end token (eos_token): a completion would never end; set one")
        self.tokenizer, self.images = tokenizer, inputs_of(tokenizer)
        self.render: Plain | Chat = renderer(
            tokenizer, config.template, config.system, config.date, config.chat_template_kwargs
        )
        self.max_length, self.truncation = config.max_length, config.truncation
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int = tokenizer.eos_token_id
        self.adds_bos = self.bos is not None and tokenizer("a")["input_ids"][:1] == [self.bos]
        self.longest_token = max(map(len, tokenizer.get_vocab()))
        self.control: dict[bool | None, list[int]] = {}  # label -> start of the completion
        if control_text is not None:
            good, bad = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in control_text)
            self.control = {True: good, False: bad}
            self.max_length -= max(len(good), len(bad))

    def rows(self, records: Iterable[Record]) -> list[dict[str, Any]]:
        """One row per record, with a reason if it is rejected."""
        return [self._row(record) for record in records]

    def key(self) -> str:
        """The digest of everything that the tokens depend on, besides the records and the code."""
        return of_json([
            _backend(self.tokenizer), self.tokenizer.special_tokens_map, self.adds_bos, self.render.source,
            self.render.system, self.render.arguments, self.max_length, self.truncation,
            ["scored", *sorted(self.control.items())] if self.control else [],
            None if self.images is None else self.images.settings,
            version_of("tokenizers"), version_of("transformers"),
        ])  # fmt: skip

    def _row(self, record: Record) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": record.id,
            "kind": record.kind.value,
            "prompt": None,
            "completions": None,
            "desirable": record.desirable,
            "scores": record.scores,
            "weight": record.weight,
            "margin": record.margin,
            "probability": record.probability,
            "source": record.source,
            "prompt_key": int(content_hash(record.prompt), 16) - 2**63,
            "marked": self._marked(record),
            "given": 0,
            "opened": 0 if record.ended is None else record.ended.count(False),
            "truncated": 0,
            "images": None,
            "reason": None,
            "detail": None,
        }
        try:
            row["prompt"], completions, row["truncated"] = self._fit(record)
            row["images"] = self._images_in(row["prompt"]) if images_of(record.prompt) else None
            row["given"] = sum(token < 0 for ids in completions for token in ids) if _has_given(record) else 0
            row["completions"] = [self.control.get(record.desirable, []) + tokens for tokens in completions]
        except RowError as error:
            row |= {"reason": error.reason, "detail": error.detail}
        return row

    def _marked(self, record: Record) -> bool:
        """Whether a text holds marks of a chat template, which then prints them a second time."""
        marks = self.render.marks
        texts = (record.prompt, *record.completions)
        contents = (part if isinstance(part, str) else "\n".join(t["content"] for t in part) for part in texts)
        return marks is not None and any(map(marks.search, contents))

    def _fit(self, record: Record) -> tuple[list[int], list[list[int]], int]:
        """(prompt, completions, number of prompt tokens cut) within `max_length` tokens."""
        prompt, completions = self.encode(record)
        whole = len(prompt)
        budget = self.max_length - max(map(len, completions), default=0)
        if whole <= budget:
            return prompt, completions, 0
        if self.truncation == "drop":
            raise self._too_long(whole, completions, "data.truncation=keep_end cuts prompts")
        if isinstance(record.prompt, str) and self.render.source is None and not images_of(record.prompt):
            start = 1 if prompt[0] == self.bos else 0
            if budget - start < 1:
                raise self._too_long(whole, completions, "the completion alone is too long")
            kept = prompt[start - budget :] if self.truncation == "keep_end" else prompt[start:budget]
            return prompt[:start] + kept, completions, whole - budget
        for shorter in shorter_prompts(record.prompt, self.truncation):
            prompt, completions = self.encode(record, shorter)
            if len(prompt) + max(map(len, completions), default=0) <= self.max_length:
                return prompt, completions, whole - len(prompt)
        raise self._too_long(whole, completions, "its last turn is never cut")

    def encode(self, record: Record, prompt: Any = None) -> tuple[list[int], list[list[int]]]:
        """Tokens of the prompt and of each completion, split at their longest common prefix, of any length."""
        prompt = record.prompt if prompt is None else prompt
        made, parts = self._rendered(self.render.given(record.arguments), prompt, record.completions, record.ended)
        texts = [made.prompt, *(answer.text for answer in made.answers)]
        longest = max(map(len, texts))
        if self.truncation == "drop" and longest > self.max_length * self.longest_token:
            raise self._too_long(None, [], "it has too many characters for that many tokens")
        (head, _), *coded = self._coded(texts, offsets=any(answer.spans is not None for answer in made.answers))
        if not head:
            raise RowError("empty_prompt", "the prompt has no tokens")
        shared = min((_common(head, ids) for ids, _ in coded), default=len(head))
        if not shared:
            raise RowError("empty_prompt", "prompt and completions share no first token")
        completions = [self._completion(answer, shared, one) for answer, one in zip(made.answers, coded, strict=True)]
        if record.kind is Data.PAIRS and completions[0] == completions[1]:
            raise RowError("identical_tokens", "both sides are the same tokens under this template")
        head = self._coded_images(head[:shared], prompt, parts)
        if self.images is not None:
            self.images.check_words(head, *(token_ids(np.array(ids)).tolist() for ids in completions))
        return head, completions

    def _rendered(
        self, render: Plain | Chat, prompt: Text, completions: tuple[Text, ...], ended: tuple[bool, ...] | None = None
    ) -> tuple[Rendered, list[Expansion]]:
        """The texts of a record with what stands for each image of its prompt, and these parts."""
        digests = images_of(prompt)
        if digests and self.images is None:  # before its template, which may have no words for images
            raise RowError("images_unsupported", "the prompt has an image, and this model takes none: give one that "
                                                 "does, with its processor, or data.ignore=[images]")  # fmt: skip
        made = render.render(prompt, completions, ended)
        return expanded(self.images, made, digests) if self.images is not None and digests else (made, [])

    def _coded_images(self, ids: list[int], prompt: Text, parts: list[Expansion]) -> list[int]:
        return self.images.coded(ids, images_of(prompt), parts) if self.images is not None and parts else ids

    def _images_in(self, ids: list[int]) -> list[str]:
        """The images of a prompt in tokens, which may have been cut."""
        assert self.images is not None
        return [*self.images.images_of(np.array(ids, np.int32))]

    def _completion(
        self, answer: RenderedAnswer, shared: int, coded: tuple[list[int], list[tuple[int, int]]]
    ) -> list[int]:
        """The tokens of a completion after the prompt, those of given parts below 0."""
        ids, offsets = coded
        if answer.spans is None:
            return self._closed(ids[shared:], answer)
        *earlier, (start, stop) = self._places(answer, ids, offsets)
        tokens = as_given(np.array(ids[shared:start], np.int64))
        for a, b in earlier:
            if not self._ends(answer).isdisjoint(ids[a : b - 1]) and answer.plain:
                raise _end_inside()
            tokens[a - shared : b - shared] = ids[a:b]
        return [*tokens.tolist(), *self._closed(ids[start:stop], answer)]

    def _places(self, answer: RenderedAnswer, ids: list[int], offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The spans of an answer as places of its tokens; a token that spans a border is trained.

        Offsets may leave out spaces at either side of a token, so it begins where the one before ends, at the latest.
        """
        assert answer.spans is not None
        if not offsets:  # a slow tokenizer: by the tokens of what comes before each border
            before = [[self._ids(answer.text[:border]) for border in span] for span in answer.spans]
            return [(_common(start, ids), (n := _common(stop, ids)) + (n < len(stop))) for start, stop in before]
        starts, ends = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2).T
        ends = np.maximum.accumulate(ends)
        starts = np.minimum(starts, np.concatenate([[0], ends[:-1]]))
        borders = np.array(answer.spans).T
        first, last = ends.searchsorted(borders[0], side="right"), starts.searchsorted(borders[1])
        return list(zip(first.tolist(), last.tolist(), strict=True))

    def prompt(self, prompt: Text, arguments: Mapping[str, Any] | None = None) -> list[int]:
        """Tokens of a prompt to be answered, with what is given to the chat template beside its turns."""
        made, parts = self._rendered(self.render.given(arguments or {}), prompt, ())
        return self._coded_images(self._ids(made.prompt), prompt, parts)

    def _ids(self, text: str) -> list[int]:
        return self._coded([text])[0][0]

    def _coded(self, texts: list[str], *, offsets: bool = False) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """The tokens of each text, and if asked for, and the tokenizer knows, the places of their characters."""
        offsets &= bool(self.tokenizer.is_fast)
        try:
            coded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=offsets)
        except BaseException as error:
            if is_panic(error):
                raise UserError(f"the tokenizer fails on a text: {first_line(error)[:300]}") from error
            raise
        places = coded["offset_mapping"] if offsets else [[]] * len(texts)
        return [*map(self._begun, coded["input_ids"], places)]

    def _begun(self, ids: list[int], places: list[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of a text with the beginning-of-sequence token once, where the text or the tokenizer has it."""
        if (bos := self.bos) is None or bos == self.eos:
            return ids, places
        start = next((i for i, token in enumerate(ids) if token != bos), len(ids))
        first = start > 0 or self.adds_bos
        return [bos] * first + ids[start:], [(0, 0)] * (first and bool(places)) + places[start:]

    def _ends(self, answer: RenderedAnswer) -> set[int]:
        """The tokens that end a turn."""
        ends = {self.eos}
        if answer.end is not None:
            ends.add(self.tokenizer.convert_tokens_to_ids(answer.end))
        return ends

    def _closed(self, ids: list[int], answer: RenderedAnswer) -> list[int]:
        """The last turn of a completion, which ends with its end token if it ends, and has no other."""
        ends = self._ends(answer)
        if answer.ended and (not ids or ids[-1] not in ends):
            ids = [*ids, self.eos]
        said = ids[:-1] if answer.ended else ids
        if answer.plain and not ends.isdisjoint(said):
            raise _end_inside()
        if ends.issuperset(ids) or self._blank(said):
            raise RowError("empty_completion", "the completion is empty under this template")
        return ids

    def _blank(self, ids: list[int]) -> bool:
        """Whether tokens have no visible character; the first few nearly always have."""
        shown = self.tokenizer.decode(ids[:FIRST]).rstrip("\ufffd")  # of a character that was cut in two
        return blank(shown) and blank(self.tokenizer.decode(ids))

    def _too_long(self, prompt: int | None, completions: list[list[int]], remark: str) -> RowError:
        most = f", at most {max(map(len, completions))} of an answer" if completions else ""
        sizes = "" if prompt is None else f" ({prompt} of the prompt{most})"
        return RowError("too_long", f"more than data.max_length={self.max_length} tokens{sizes}; {remark}")


def _on_disk(records: RecordTable, folder: Path, encoder: Encoder, config: DataConfig) -> pa.Table:
    repeats = records.repeats  # workers get this and the file's name, not the table

    def write(target: Path) -> None:
        import datasets

        source = datasets.Dataset.from_file(str(folder / RECORDS))
        workers = config.num_proc or max(1, min(os.cpu_count() or 1, len(records) // WORKER_ROWS))

        def batch(columns: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
            names = list(columns)
            rows = (dict(zip(names, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
            made = encoder.rows(decode(row, repeats.get(i, 0)) for row, i in zip(rows, indices, strict=True))
            return {name: [row[name] for row in made] for name in SCHEMA.names}

        with _same_environment():
            source.map(
                batch, with_indices=True, batched=True, batch_size=BATCH_ROWS, writer_batch_size=BATCH_ROWS,
                remove_columns=source.column_names, features=datasets.Features.from_arrow_schema(SCHEMA),
                cache_file_name=str(target / "tokens.arrow"), new_fingerprint="tokens", desc="tokenize",
                num_proc=workers if workers > 1 else None,
            )  # fmt: skip

    place = data_cache(config.cache_dir) / f"tokens-{of_json([code_key(), folder.name, encoder.key()])}"
    files = sorted(cached_folder(place, write).glob("*.arrow"))
    with reading(place):
        return pa.concat_tables([open_arrow(file, SCHEMA) for file in files])


@contextmanager
def _same_environment() -> Iterator[None]:
    """Keep `os.environ` the object that it is: `Dataset.map` with `num_proc` leaves a copy in its place.

    Whoever holds the old object (monkeypatch, `from os import environ`) would otherwise no longer change the new one.
    """
    environment, parallelism = os.environ, os.environ.get("TOKENIZERS_PARALLELISM")
    try:
        yield
    finally:
        os.environ = environment  # noqa: B003
        if parallelism is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = parallelism


def _result(table: pa.Table) -> TokenResult:
    bad = pc.is_valid(table.column("reason"))
    listed = table.select(["source", "reason", "detail", "id"]).filter(bad).to_pylist()
    rejections = [Rejection(**row) for row in listed]
    kept = np.flatnonzero(~bad.to_numpy())
    pictured = table.select(["prompt", "images"]).filter(pc.is_valid(table.column("images")))
    for batch in pictured.to_batches():  # other processes may have made them
        for row in batch.to_pylist():
            remember(row["prompt"], row["images"])
    counts = Counter(f"rejected/{rejection.reason}" for rejection in rejections)
    counts["records"] = len(kept)
    counts["truncated_prompts"] = pc.sum(pc.greater(table.column("truncated"), 0)).as_py() or 0
    return TokenResult(records=TokenTable(table, kept), rejections=rejections, counts=dict(counts))


def _has_given(record: Record) -> bool:
    """Whether any completion has several turns, of which some tokens may be given."""
    return any(not isinstance(said, str) and len(said) > 1 for said in record.completions)


def _end_inside() -> RowError:
    """The error of a text that ends where it should not."""
    return RowError("end_token_inside", "the text of a completion has the end-of-turn token; remove it")


def _common(a: list[int], b: list[int]) -> int:
    """The length of the common prefix."""
    if b[: len(a)] == a:  # nearly always
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _chunks(records: Sequence[Record]) -> Iterable[Sequence[Record]]:
    return (records[i : i + BATCH_ROWS] for i in range(0, len(records), BATCH_ROWS))
