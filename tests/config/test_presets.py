"""The files of `conf/data`: each composes, and names a schema that there is."""

from __future__ import annotations

import re
from pathlib import Path

import prefopt.conf
import pytest

from prefopt.config.compose import compose
from prefopt.data import DataConfig
from prefopt.data.schemas import SCHEMAS
from prefopt.errors import UserError

FOLDER = Path(prefopt.conf.__path__[0], "data")
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", PRESETS)
def test_preset(name: str) -> None:
    overrides = [f"data={name}"]
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# ")  # says what it is
    if "path: ???" in text or name == "auto":
        overrides.append("data.path=some.jsonl")
    config = compose(overrides).data
    assert isinstance(config, DataConfig)
    config.check()
    assert config.schema == "auto" or config.schema in SCHEMAS


def test_a_preset_without_its_path_says_so() -> None:
    with pytest.raises(UserError, match=r"give data\.path"):
        compose(["data=instruction_pairs"]).data.check()


def test_ten_hub_sets() -> None:
    texts = [path.read_text() for path in FOLDER.glob("*.yaml")]
    assert sum(re.search(r"^path: [\w-]+/[\w-]+$", text, re.M) is not None for text in texts) >= 10


def test_fields_and_mixtures_from_the_command_line() -> None:
    config = compose(["data=auto", "data.path=a.jsonl", "data.fields={prompt: q, chosen: a.best}"]).data
    assert config.fields == {"prompt": "q", "chosen": "a.best"}
    config = compose(["data=auto", "data.mixture=[{path: a.jsonl, weight: 0.5}, {path: b.jsonl}]"]).data
    assert [(source.path, source.weight) for source in config.sources()] == [("a.jsonl", 0.5), ("b.jsonl", 1.0)]
