"""`prefopt doctor`."""

from __future__ import annotations

import json

import pytest
import torch

from prefopt.cli import main


def test_doctor_says_versions_and_what_is_usable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__
    assert found["usable"]["cuda"] == torch.cuda.is_available()
    assert found["machine"]["cores"] >= 1
    if not torch.cuda.is_available():
        assert found["usable"]["bf16"] is False  # transformers refuses it on CPUs
    assert {"prefopt", "hub"} == found["caches"].keys()
    assert main(["doctor"]) == 0
    assert "versions" in capsys.readouterr().out


def test_doctor_shows_no_secret(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "hf_secret")
    assert main(["doctor", "--json"]) == 0
    assert "hf_secret" not in capsys.readouterr().out
