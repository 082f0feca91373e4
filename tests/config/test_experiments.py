"""Experiments that are named by a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.config.compose import compose
from prefopt.errors import UserError


@pytest.mark.parametrize("text", ["- 1", "{", None])
def test_an_invalid_experiment_file_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "ours.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="experiment="):
        compose([f"experiment={path}"])
