"""Puts the images of a row where its texts name them, by `<image>` or parts of messages, or before the question."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.data.images.image_files import BORDERS, FILES, IMAGE_MARK, SOURCES, ImageShelf, digests_in
from prefopt.data.make import content_hash, prompt_alone
from prefopt.data.record import Message, Record, RowError, Text
from prefopt.data.record_table import data_cache
from prefopt.data.rows import Row
from prefopt.errors import UserError

COLUMNS = ("images", "image")
PLACE = "<image>"  # where an image of the columns stands in a text
PARTS = ("image", "image_url", "input_image")  # types of parts of a message


def with_marks(row: Row, shelf: ImageShelf) -> tuple[Row, str]:
    """The row with marks in place of its images, and the marks of those that no text has a place for.

    Each text and each dialogue that has places has one for every image of the row, in their order.

    Raises:
        RowError: an image that cannot be used, or as many places as there are no images.
    """
    column, given = _given(row)
    if not given and not any(_has_parts(value) for value in row.values()):
        return row, ""
    if any(_holds_borders(value) for value in row.values()):
        raise RowError("reserved_character", "a text has one of the characters U+E0F2 and U+E0F3, which stand for "
                                             "images; take it out")  # fmt: skip
    marks = [shelf.mark(value, column) for value in given]
    placed, changed = False, {}
    for name, value in row.items():
        if name in COLUMNS:
            continue
        left = iter(marks)
        taker = _Places(name, left, shelf, texts=bool(marks))
        changed[name] = taker.filled(value)
        if taker.taken and taker.taken != len(marks):
            raise _miscounted(name, taker.taken, len(marks))
        placed |= bool(taker.taken)
    return changed, "" if placed else "".join(marks)


def with_images(record: Record, unplaced: str) -> Record:
    """The record of a row with images; those that have no place come first in the first turn of the user.

    Raises:
        RowError: a completion has an image.
    """
    if any(digests_in(text) for said in record.completions for text in _texts(said)):
        raise RowError("image_in_completion", "an answer has an image, and only prompts can have some: the model "
                                              "writes text")  # fmt: skip
    if not unplaced:
        return record
    prompt: Text
    if isinstance(record.prompt, str):
        prompt = unplaced + record.prompt
    else:
        first = next((i for i, turn in enumerate(record.prompt) if turn["role"] == "user"), None)
        if first is None:
            raise RowError("image_count", "the row has images, and its prompt has no turn of the user to put them in")
        turn: Message = {**record.prompt[first], "content": unplaced + record.prompt[first]["content"]}
        prompt = (*record.prompt[:first], turn, *record.prompt[first + 1 :])
    return dataclasses.replace(record, prompt=prompt, id=content_hash([record.id, unplaced]))


def as_columns(text: Text, column: str) -> dict[str, Any]:
    """A prompt in a column of a row, and in another the files of its images, if it has some."""
    found = [FILES[digest].path for digest in images_of(text)]
    if not found:
        return {column: text}
    if isinstance(text, str):
        return {column: IMAGE_MARK.sub(PLACE, text), "images": found}
    return {column: [{**turn, "content": IMAGE_MARK.sub(PLACE, turn["content"])} for turn in text], "images": found}


def asked_with(text: Text, files: Sequence[str], folder: str = ".") -> Text:
    """A prompt with images in its places `<image>`, or before it where it has none.

    Args:
        text: the prompt.
        files: of its images.
        folder: that their paths start from.

    Raises:
        UserError: one of them cannot be used, or there are as many places as there are no images.
    """
    if not files:
        return text
    shelf = ImageShelf([Path(folder)], data_cache(None) / "images")
    asked: Any = text if isinstance(text, str) else list(text)
    try:
        row, unplaced = with_marks({"prompt": asked, "images": list(files)}, shelf)
        prompt: Text = row["prompt"] if isinstance(text, str) else tuple(row["prompt"])
        return with_images(prompt_alone(prompt), unplaced).prompt
    except RowError as error:
        raise UserError(f"an image of the prompt cannot be used: {error.detail}") from error


def images_of(text: Text) -> list[str]:
    """The digests of the images in a prompt, in order."""
    return [digest for said in _texts(text) for digest in digests_in(said)]


def without_images(row: Row) -> Row:
    """The row without the images that its columns and messages have, and without the places of these in its texts."""
    has_some = any(not _is_empty(one) for name in COLUMNS for one in _listed(row.get(name)))
    if not has_some and not any(map(_has_parts, row.values())):
        return row
    return {name: _without(value, PLACE if has_some else "") for name, value in row.items() if name not in COLUMNS}


class _Places:
    """Fills the places of one column; `taken` counts the images of the row that it used."""

    def __init__(self, column: str, marks: Iterator[str], shelf: ImageShelf, *, texts: bool) -> None:
        self.column, self.marks, self.shelf, self.texts = column, marks, shelf, texts
        self.taken = 0

    def filled(self, value: Any) -> Any:
        if isinstance(value, str):
            pieces = value.split(PLACE) if self.texts else [value]
            return pieces[0] + "".join(self._next() + piece for piece in pieces[1:])
        if isinstance(value, Mapping):
            if _is_part(value):
                return {"type": "text", "text": self._of_part(value)}
            return {name: self.filled(held) for name, held in value.items()}
        return [*map(self.filled, value)] if isinstance(value, list | tuple) else value

    def _of_part(self, part: Mapping[str, Any]) -> str:
        names_its_own = any(part.get(name) is not None for name in SOURCES)
        return self.shelf.mark(part, self.column) if names_its_own else self._next()

    def _next(self) -> str:
        self.taken += 1
        return next(self.marks, "")


def _given(row: Row) -> tuple[str, list[Any]]:
    """The images of the row's columns, and the name of the column that has them."""
    found = {}
    for column in COLUMNS:
        value = row.get(column)
        values = _listed(value)
        if isinstance(value, Mapping) and isinstance(value.get("bytes"), list):  # a list of structs, as columns
            values = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
        if held := [one for one in values if not _is_empty(one)]:
            found[column] = held
    if len(found) > 1:
        raise RowError("image_count", "the row has both 'images' and 'image'; leave one out with data.ignore=[image]")
    return next(iter(found.items()), ("images", []))


def _is_empty(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_empty, value.values()))
    return value is None or (isinstance(value, str) and not value.strip())


def _is_part(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("type"), str) and value["type"] in PARTS


def _has_parts(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _is_part(value) or any(map(_has_parts, value.values()))
    return isinstance(value, list) and any(map(_has_parts, value))


def _without(value: Any, place: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _without(held, place) for name, held in value.items()}
    if isinstance(value, list):
        return [_without(one, place) for one in value if not (isinstance(one, Mapping) and _is_part(one))]
    return value.replace(place, "") if isinstance(value, str) and place else value


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _holds_borders(value: Any) -> bool:
    if isinstance(value, str):
        return any(border in value for border in BORDERS)
    held: Iterable[Any] = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return any(map(_holds_borders, held))


def _miscounted(name: str, places: int, images: int) -> RowError:
    return RowError("image_count", f"{name!r} has {places} places for images ({PLACE}, or parts of type image), and "
                                   f"the row has {images}")  # fmt: skip


def _texts(text: Text) -> list[str]:
    return [text] if isinstance(text, str) else [turn["content"] for turn in text]
