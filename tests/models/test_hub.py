"""A misspelt model is named in one line, without the hub being asked again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from prefopt.cli import main
from prefopt.errors import UserError
from prefopt.models.hub import ask_hub, check_on_hub

ANSWER = httpx2.Response(404, request=httpx2.Request("GET", "https://hub"))


def test_a_folder_and_what_is_no_hub_id_are_not_looked_up(tmp_path: Path) -> None:
    for path in (str(tmp_path), "package:model", "/does/not/exist", "a/b/c", "with space", "a" * 400):
        check_on_hub(path)


@pytest.mark.parametrize(
    ("error", "message"),
    [(httpx2.ConnectError("no name"), "no model of that name in the hub's cache, and the hub cannot be reached; did"),
     (RepositoryNotFoundError("404", response=ANSWER), "the hub has no model of that name that can be read here; did"),
     (GatedRepoError("403", response=ANSWER), None),
     (None, None)],
)  # fmt: skip
def test_the_hub_is_asked_once(error: Exception | None, message: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(self: Any, name: str, **_: Any) -> None:
        asked.append(name)
        if error is not None:
            raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", answer)
    ask_hub.cache_clear()
    if message is None:
        check_on_hub("owner/model")
        check_on_hub("owner/model")  # by the verb, and again where the model is loaded
        ask_hub.cache_clear()
    else:
        with pytest.raises(UserError, match=f"there is no folder owner/model, .*{message}"):
            check_on_hub("owner/model", hint="; did you mean 'runs/model'?")
    assert asked == ["owner/model"]


@pytest.mark.parametrize("argv", [["eval", "{}", "data.path=owner/set"], ["sample", "{}", "--prompt", "Hi"]])
def test_offline_the_nearest_run_is_named(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    run = Path("runs/polite")
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    assert main([word.format("polit") for word in argv]) == 2
    error = capsys.readouterr().err
    assert "there is no folder polit, and no model of that name in the hub's cache (HF_HUB_OFFLINE is set)" in error
    assert "did you mean 'runs/polite'?" in error
    assert error.count("\n") == 1
