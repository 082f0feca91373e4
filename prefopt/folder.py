"""The folder of a run: files that are whole or absent, and the checkpoint to go on from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefopt.errors import UserError


def write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    tmp = path.with_name(f"tmp-{path.name}")
    tmp.write_text(text)
    tmp.replace(path)


def write_json(path: Path, content: Any) -> None:
    """`write` a value as JSON."""
    write(path, json.dumps(content, indent=1))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """`write` one JSON object a line."""
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def checkpoint_to_resume(out: Path, resume: str) -> Path | None:
    """The checkpoint to go on from.

    Args:
        out: the run's folder.
        resume: `auto`, `never`, or a checkpoint folder.

    Raises:
        UserError: the folder has a finished or another run, or no such checkpoint is there.
    """
    from prefopt.trainer.checkpoints import checkpoints

    if resume not in ("auto", "never"):
        folder = Path(resume)
        if not (folder / "trainer_state.json").is_file():
            raise UserError(f"resume={resume}: there is no checkpoint in that folder")
        return folder
    if (out / "summary.json").exists():
        raise UserError(f"output_dir={out} already has a finished run: choose another folder, or delete it")
    found = checkpoints(out)
    if resume == "auto":
        return found[-1] if found else None
    if found:
        raise UserError(f"resume=never, but output_dir={out} has checkpoints: choose another folder, or delete them")
    return None
