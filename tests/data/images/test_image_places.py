"""Rows with images: where they stand in a text, and which rows are rejected, by name and with the remedy."""

from __future__ import annotations

import base64
import io
import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from prefopt.data.data_config import DataConfig
from prefopt.data.images.image_files import IMAGE_MARK, MOST_PIXELS, ImageShelf, readable
from prefopt.data.reader import ReadResult, read
from prefopt.data.record import RowError
from prefopt.errors import UserError


def content(colour: str = "red", kind: str = "PNG", size: tuple[int, int] = (20, 10)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def row(**more: Any) -> dict[str, Any]:
    return {"prompt": "Which colour?", "chosen": "red", "rejected": "blue", **more}


def reading(folder: Path, *rows: dict[str, Any], **options: Any) -> ReadResult:
    for name, kind in (("red.png", "PNG"), ("blue.jpg", "JPEG")):
        (folder / name).write_bytes(content(name.partition(".")[0], kind))
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, row()])))
    return read(DataConfig(path=str(folder / "a.jsonl"), **options))


def text_of(result: ReadResult, i: int = 0) -> str:
    prompt = result.records[i].prompt
    return prompt if isinstance(prompt, str) else " | ".join(turn["content"] for turn in prompt)


URI = "data:image/png;base64," + base64.b64encode(content()).decode()


@pytest.mark.parametrize(
    "more",
    [
        {"images": ["red.png"]},
        {"image": "red.png"},
        {"images": [{"bytes": None, "path": "red.png"}]},
        {"images": [URI]},
        {"images": [{"url": URI}]},
        {"prompt": "<image>Which colour?", "images": ["red.png"]},
        {"prompt": [{"role": "user", "content": "Which colour?"}], "images": ["red.png"]},
        {"prompt": [{"role": "user", "content": "<image>Which colour?"}], "images": ["red.png"]},
        {"prompt": [{"role": "user", "content": [{"type": "image", "text": None},
                                                 {"type": "text", "text": "Which colour?"}]}], "images": ["red.png"]},
        {"prompt": [{"role": "user", "content": [{"type": "image", "image": "red.png"},
                                                 {"type": "text", "text": "Which colour?"}]}]},
        {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URI}},
                                                 {"type": "text", "text": "Which colour?"}]}]},
    ],
)  # fmt: skip
def test_every_spelling_puts_the_image_before_the_question(tmp_path: Path, more: dict[str, Any]) -> None:
    found = reading(tmp_path, row(**more))
    assert not found.rejections
    assert readable(text_of(found)) == "[image 20x10]Which colour?"
    assert not IMAGE_MARK.search(text_of(found, 1))  # a row without images stays as it is


def test_bytes_in_parquet_as_datasets_stores_them(tmp_path: Path) -> None:
    rows = [row(images=[{"bytes": content(c), "path": None}]) for c in ("red", "blue", "red")]
    features = datasets.Features({**dict.fromkeys(row(), datasets.Value("string")),
                                  "images": datasets.List(datasets.Image())})  # fmt: skip
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
    found = read(DataConfig(path=str(tmp_path / "a.parquet")))
    assert not found.rejections
    first, second, third = (text_of(found, i) for i in range(3))
    assert first == third != second
    assert [r.id for r in found.records][2].startswith(found.records[0].id)  # a repetition by content


def test_places_in_the_middle_keep_their_order(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "First <image>, then <image>?"}]
    found = reading(tmp_path, row(prompt=said, images=["red.png", "blue.jpg"]))
    assert readable(text_of(found)) == "First [image 20x10], then [image 20x10]?"
    marks = IMAGE_MARK.findall(text_of(found))
    assert len(set(marks)) == 2


def test_whole_dialogues_on_both_sides_have_their_images_each(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "<image>Which?"}
    sides = {side: [asked, {"role": "assistant", "content": said}] for side, said in
             (("chosen", "red"), ("rejected", "blue"))}  # fmt: skip
    found = reading(tmp_path, {**sides, "images": ["red.png"]})
    assert not found.rejections
    assert readable(text_of(found)) == "[image 20x10]Which?"


def test_paths_start_from_the_data_file_then_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "near.png").write_bytes(content())
    (tmp_path / "far.png").write_bytes(content())
    rows = [row(images=["near.png"]), row(images=["far.png"])]
    (tmp_path / "sub" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read(DataConfig(path=str(tmp_path)))
    assert len(found.records) == 2


def bomb(width: int, height: int) -> bytes:
    """A PNG that declares a size, and holds one row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(3 * width + 1), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("more", "reason", "says"),
    [
        ({"images": ["gone.png"]}, "image_missing", "relative to the data file"),
        ({"images": ["a" * 300]}, "image_missing", "relative to the data file"),
        ({"images": ["cut.jpg"]}, "image_broken", "cannot be decoded"),
        ({"images": ["text.png"]}, "image_broken", "cannot be decoded"),
        ({"images": ["bomb.png"]}, "image_too_large", "make it smaller"),
        ({"images": ["huge.png"]}, "image_too_large", "make it smaller"),
        ({"images": ["moving.gif"]}, "image_frames", "give one image"),
        ({"images": ["deep.png"]}, "image_depth", "deep.png: more than 8 bits a channel (mode I;16)"),
        ({"images": ["real.tif"]}, "image_depth", "convert it to 8 bits"),
        ({"images": ["https://example.com/cat.png"]}, "image_url", "download the images"),
        ({"images": ["data:image/png;base64,???"]}, "image_broken", "not base64"),
        ({"images": ["data:text/html,hi"]}, "image_broken", "data:image/FORMAT"),
        ({"images": [3]}, "wrong_type", "a path, bytes or a data URI"),
        ({"images": ["red.png"], "image": "red.png"}, "image_count", "both"),
        ({"images": ["red.png"], "prompt": "<image><image>Which?"}, "image_count", "2 places"),
        ({"images": ["red.png"], "chosen": "it is <image>"}, "image_in_completion", "only prompts"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "image_count", "1 places"),
        ({"images": ["red.png"], "prompt": "\ue0f2" + "0" * 32 + "\ue0f3 Which?"}, "reserved_character", "take it out"),
        ({"videos": ["cat.mp4"]}, "unread_input", "videos"),
        ({"audio": "cat.wav"}, "unread_input", "audio"),
        ({"prompt": [{"role": "user", "content": [{"type": "video", "video": "x"}]}]}, "not_text", "video"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_a_listed_rejection(
    tmp_path: Path, more: dict[str, Any], reason: str, says: str
) -> None:
    (tmp_path / "cut.jpg").write_bytes(content(kind="JPEG", size=(200, 200))[:700])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "bomb.png").write_bytes(bomb(20_000, 20_000))
    (tmp_path / "huge.png").write_bytes(bomb(2**13 + 1, MOST_PIXELS // 2**13))
    Image.new("I;16", (4, 4), 40_000).save(tmp_path / "deep.png")
    Image.new("F", (4, 4), 0.5).save(tmp_path / "real.tif")
    Image.new("RGB", (4, 4)).save(
        tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")], duration=10
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = reading(tmp_path, row(**more))
    (rejection,) = found.rejections
    assert (rejection.reason, rejection.source) == (reason, "a.jsonl:0")
    assert says in rejection.detail
    assert found.counts[f"rejected/{reason}"] == 1
    assert len(found.records) == 1


@pytest.mark.parametrize("key", ["images", "image"])
def test_data_can_be_read_without_its_images(tmp_path: Path, key: str) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "Which?"}]
    found = reading(tmp_path, row(prompt=[{"role": "user", "content": parts}], images=["gone.png"]),
                    ignore=["images", key])  # fmt: skip
    assert not found.rejections
    assert text_of(found) == "Which?"


def test_another_column_can_hold_the_images(tmp_path: Path) -> None:
    found = reading(tmp_path, row(photo="red.png"), fields={"images": "photo"})
    assert readable(text_of(found)) == "[image 20x10]Which colour?"


def test_a_changed_image_is_read_anew_though_the_data_file_is_as_it_was(tmp_path: Path) -> None:
    first = reading(tmp_path, row(images=["red.png"]), row(images=["later.png"]))
    assert [r.reason for r in first.rejections] == ["image_missing"]
    path = DataConfig(path=str(tmp_path / "a.jsonl"))
    Image.new("RGB", (8, 8), "green").save(tmp_path / "red.png")
    Image.new("RGB", (9, 9), "green").save(tmp_path / "later.png")
    second = read(path)
    assert [readable(text_of(second, i)) for i in range(2)] == ["[image 8x8]Which colour?", "[image 9x9]Which colour?"]
    assert second.records[0].id != first.records[0].id
    assert [r.id for r in read(path).records] == [r.id for r in second.records]


def test_images_are_upright_and_in_three_colours(tmp_path: Path) -> None:
    turned = Image.new("RGBA", (30, 10), (255, 0, 0, 128))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    assert readable(text_of(reading(tmp_path, row(images=["turned.png"])))) == "[image 10x30]Which colour?"


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_an_image_of_more_than_8_bits_is_not_cut_off(tmp_path: Path, mode: str) -> None:
    with pytest.raises(RowError, match="convert it to 8 bits"):
        ImageShelf([], tmp_path).mark(Image.new(mode, (4, 4)), "images")


def test_no_usable_row_names_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row(images=["gone.png"])))
    with pytest.raises(UserError, match="image_missing"):
        read(DataConfig(path=str(tmp_path / "a.jsonl")))
