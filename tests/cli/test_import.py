"""`prefopt import` shows what has no equivalent and what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.cli import main
from tests.migrate.settings import written


def test_what_has_no_equivalent_and_what_differs_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = written(tmp_path, {"loss_type": "hinge", "neftune_noise_alpha": 5, "no_such_option": 1})
    ours = tmp_path / "ours.yaml"
    assert main(["import", theirs, "--to", str(ours)]) == 0
    said = capsys.readouterr().out
    assert "neftune_noise_alpha: noise on the embeddings" in said
    assert "no_such_option: there is no such option here" in said
    assert "it is RSO's, not `slic_hf`" in " ".join(said.split())  # in the words of the compat preset
    assert "still to be given: model.path, data.path" in said
    assert "# No equivalent: neftune_noise_alpha" in ours.read_text()
    assert main(["import", theirs, "--to", str(ours)]) == 2  # it is there already
    assert main(["import", theirs, "--json"]) == 0
    assert {"overrides", "no_equal", "differs"} <= json.loads(capsys.readouterr().out).keys()
