"""docs/data.md describes every schema, finding and preset as the code does."""

from __future__ import annotations

from pathlib import Path

from prefopt.data.doctor import MEANINGS
from prefopt.data.jinja_source import NAMED
from prefopt.data.schemas import SCHEMAS
from tests.config.test_presets import PRESETS

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def test_every_schema_is_there() -> None:
    assert [name for name, schema in SCHEMAS.items() if f"| `{name}` | {schema.columns} |" not in TEXT] == []


def test_every_finding_is_there() -> None:
    assert [name for name, meaning in MEANINGS.items() if f"| `{name}` | {meaning.says} |" not in TEXT] == []


def test_every_preset_and_template_is_there() -> None:
    names = {*PRESETS, *(path.stem for path in NAMED.glob("*.jinja"))} - {"world", "world_instructions", "auto"}
    assert [name for name in sorted(names) if f"`{name}`" not in TEXT] == []
