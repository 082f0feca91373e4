"""Reads and checks image files. An image in a text is a mark with the digest of its content.

Whatever compares, hashes or stores a text then tells images apart by their content. A process knows the files behind
the digests that it has read: `FILES`.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import urllib.parse
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from prefopt.common.digest import of_bytes
from prefopt.common.files import write_cached
from prefopt.data.fields import shown, type_of
from prefopt.data.record import RowError
from prefopt.errors import UserError, first_line, of_machine

IMAGE_MARK = re.compile("\ue0f2([0-9a-f]{32})\ue0f3")  # an image in a text
BORDERS = "\ue0f2\ue0f3"
MOST_BYTES = 2**26  # of a file
MOST_PIXELS = 2**26  # of an image, such as 8192 x 8192
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "MPO")  # formats whose readers start no other program
SOURCES = ("bytes", "path", "image", "url", "image_url", "base64")  # keys by which an object gives its image
SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.I)
State = list[int] | None  # (size, mtime_ns) of a file; None where there was none


@dataclass(frozen=True)
class ImageFile:
    """An image on disk; `pixels` is the digest of its decoded pixels, the same in every file format."""

    path: str
    width: int
    height: int
    pixels: str


FILES: dict[str, ImageFile] = {}  # digest of the content -> file


def mark_of(digest: str) -> str:
    """An image as it stands in a text."""
    return f"{BORDERS[0]}{digest}{BORDERS[1]}"


def digests_in(text: str) -> list[str]:
    """The digests of the images in a text, in order."""
    return IMAGE_MARK.findall(text)


def readable(text: str) -> str:
    """A text with words in place of its images."""
    if BORDERS[0] not in text:
        return text

    def named(mark: re.Match[str]) -> str:
        file = FILES.get(mark[1])
        return f"[image {file.width}x{file.height}]" if file else "[image]"

    return IMAGE_MARK.sub(named, text)


def decoded(content: bytes) -> Image.Image:
    """The image of a file's content, upright and in RGB.

    Raises:
        RowError: another format, several frames, too many pixels, more than 8 bits a channel, or damage.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes, which are checked here, and of odd metadata
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            frames, (width, height) = getattr(image, "n_frames", 1), image.size
            if width * height > MOST_PIXELS:
                raise RowError("image_too_large", f"{width} x {height} pixels, and an image may have {MOST_PIXELS}; "
                                                  "make it smaller")  # fmt: skip
            if frames > 1 and image.format != "MPO":
                raise RowError("image_frames", f"{frames} frames or pages, and videos are not read; give one image")
            return in_rgb(ImageOps.exif_transpose(image))
        except RowError:
            raise
        except Image.DecompressionBombError:
            raise RowError("image_too_large", f"more than {MOST_PIXELS} pixels; make it smaller") from None
        except Exception as error:  # a damaged file raises any of a dozen exceptions
            if of_machine(error):
                raise
            raise RowError("image_broken", f"it cannot be decoded ({first_line(error)[:120]}); it must be complete, "
                                           f"and one of {', '.join(FORMATS)}") from error  # fmt: skip


def in_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB.

    Raises:
        RowError: a channel has more than 8 bits, of which Pillow would cut off all above 255 instead of scaling them.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise RowError("image_depth", f"more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
    return image.convert("RGB")


def load(digest: str, files: Mapping[str, ImageFile]) -> Image.Image:
    """The image with this digest.

    Raises:
        UserError: its file is unknown, gone or another one by now.
    """
    if digest not in files:
        raise UserError(f"the image {digest} of a prompt is not among those that were read: prepare its data first")
    path = files[digest].path
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"the image {path} cannot be read any more ({error.strerror}); put it back, or start again "
                        "without it") from error  # fmt: skip
    if of_bytes(content, size=16) != digest:
        raise UserError(f"the image {path} has changed since the data was read; start again to read it anew")
    try:
        return decoded(content)
    except RowError as error:
        raise UserError(f"the image {path} cannot be decoded: {error.detail}") from error


@dataclass
class ImageShelf:
    """Finds the images that the rows of a source name, and checks each once.

    Attributes:
        roots: folders that relative paths start from, in order.
        store: the folder for images that come as bytes.
        found: digest -> file, of all that were good.
        states: path -> its state, of all that were looked for: a change of any makes the data other data.
    """

    roots: list[Path]
    store: Path
    found: dict[str, ImageFile] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    _known: dict[tuple[str, ...], str | RowError] = field(default_factory=dict)  # path -> mark, or why there is none

    def beside(self, place: str) -> ImageShelf:
        """The same for the rows of one file of a folder: `place` is FILE:ROW, and paths start from the file first."""
        folder = os.path.dirname(place.rpartition(":")[0])
        return replace(self, roots=[self.roots[0] / folder, *self.roots]) if folder else self

    def mark(self, value: Any, name: str) -> str:
        """The mark of an image: a path, a data URI, bytes, {bytes, path} as `datasets` stores it, or a PIL image.

        Raises:
            RowError: there is no such image, or it is not a good one.
        """
        if isinstance(value, Mapping):
            return self._of_mapping(value, name)
        if isinstance(value, Image.Image):
            buffer = io.BytesIO()
            in_rgb(value).save(buffer, "PNG")
            value = buffer.getvalue()
        if isinstance(value, bytes | bytearray):
            return self._stored(bytes(value), name)
        if not isinstance(value, str):
            raise RowError("wrong_type", f"an image in {name!r} must be a path, bytes or a data URI, "
                                         f"not {type_of(value)}")  # fmt: skip
        if value.startswith("data:"):
            return self._stored(_of_uri(value, name), name)
        if (scheme := SCHEME.match(value)) and scheme[1].lower() != "file":
            raise RowError("image_url", f"{name!r} has the address {shown(value)}, and nothing is fetched while data "
                                        "is read: download the images, and give their paths")  # fmt: skip
        return self._of_path(urllib.parse.unquote(value[len(scheme[0]) :]) if scheme else value, name)

    def _of_mapping(self, value: Mapping[str, Any], name: str) -> str:
        for key in SOURCES:
            if (held := value.get(key)) is not None:
                return self.mark(f"data:image/any;base64,{held}" if key == "base64" else held, name)
        raise RowError("wrong_type", f"an image in {name!r} has neither bytes nor a path: {shown(value)}")

    def _of_path(self, given: str, name: str) -> str:
        key = (given, *map(str, self.roots))
        if key not in self._known:
            try:
                self._known[key] = self._checked(given, name)
            except RowError as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, RowError):
            raise RowError(known.reason, known.detail)
        return known

    def _checked(self, given: str, name: str) -> str:
        places = [Path(os.path.abspath(root / given)) for root in self.roots]
        try:
            path = next((place for place in places if place.is_file()), None)
        except (OSError, ValueError):  # such as a name that is too long, or one with a null character
            path = None
        if path is None:
            self.states |= {str(place): None for place in places}
            raise RowError("image_missing", f"{name!r} names the image {shown(given)}, which is not at {places[0]}; "
                                            "paths are relative to the data file")  # fmt: skip
        state = self.states[str(path)] = state_of(path)
        if state is not None and state[0] > MOST_BYTES:
            raise RowError("image_too_large", f"{path} has {state[0]} bytes, and an image may have {MOST_BYTES}")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RowError("image_missing", f"{path} cannot be read: {error.strerror}") from error
        return self._kept(content, str(path), str(path))

    def _stored(self, content: bytes, name: str) -> str:
        """The mark of an image that is part of the row, whose content goes to the cache."""
        if len(content) > MOST_BYTES:
            raise RowError("image_too_large", f"an image in {name!r} has {len(content)} bytes, and may have "
                                              f"{MOST_BYTES}")  # fmt: skip
        digest = of_bytes(content, size=16)
        path = self.store / digest[:2] / digest
        mark = self._kept(content, str(path), f"an image in {name!r}")
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_cached(path, content)
        self.states[str(path)] = state_of(path)
        return mark

    def _kept(self, content: bytes, path: str, what: str) -> str:
        digest = of_bytes(content, size=16)
        if digest not in self.found:
            try:
                image = decoded(content)
            except RowError as error:
                raise RowError(error.reason, f"{what}: {error.detail}") from error
            pixels = of_bytes(repr(image.size).encode() + image.tobytes())
            self.found[digest] = FILES[digest] = ImageFile(path, image.width, image.height, pixels)
        return mark_of(digest)


def changed(states: Mapping[str, State]) -> bool:
    """Whether a file that was looked at is another one by now, has come, or is gone."""
    return any(state_of(path) != before for path, before in states.items())


def state_of(path: str | Path) -> State:
    """The size and the time of a file."""
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return None
    return [about.st_size, about.st_mtime_ns]


def _of_uri(uri: str, name: str) -> bytes:
    head, _, body = uri.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise RowError("image_broken", f"{name!r} has the data URI {shown(head)}; give data:image/FORMAT;base64,...")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError("image_broken", f"{name!r} has a data URI that is not base64: {error}") from None
