"""A run's config.yaml that somebody else wrote or broke: every verb that reads it ends in one line that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.compose import compose
from prefopt.errors import UserError
from prefopt.runs.rerun import config_of
from prefopt.runs.run_folder import RunFolder

READERS: dict[str, Any] = {
    "config_of": lambda folder: config_of(folder, folder / "new"),
    "config": lambda folder: RunFolder(folder).config,
    "start": lambda folder: RunFolder(folder).start,
    "overrides": lambda folder: RunFolder(folder).overrides(),
    "run_config": lambda folder: RunFolder(folder).run_config(),
}
TYPED = ("config_of", "run_config")  # read every value, and refuse one that its option cannot have
GOOD = compose([]).plain()


def changed(path: str, value: Any) -> dict[str, Any]:
    """The configuration of a run with one value more, or another."""
    made = json.loads(json.dumps(GOOD))
    *groups, last = path.split(".")
    section = made
    for group in groups:
        section = section[group]
    section[last] = value
    return dict(made)


def write(folder: Path, content: Any) -> Path:
    (folder / "config.yaml").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (changed("data.path", "${oc.env:HOME}"), r"data\.path has an interpolation"),
        (changed("data.fields", {"a": ["x ${now:}"]}), r"data\.fields\.a\[0\] has an interpolation"),
        (changed("hydra", {"callbacks": {"x": {"_target_": "os.system"}}}), "there is no option 'hydra'"),
        (changed("modle", {}), "there is no option 'modle'; did you mean 'model'"),
        (changed("model", None), "model is no mapping of options"),
        (changed("data", [1]), "data is no mapping of options"),
        ("[1, 2]", "is no mapping of options"),
        ("{1: 2}", "there is no option 1"),
        ("loss: {1: 2}", "has the key 1, which is no name"),
        ("seed: !!binary aGVsbG8=", "seed is of the type bytes"),
        ("loss: {name: dpo", "is not the configuration of a run"),
        ("seed: !!python/object/apply:os.system [id]", "is not the configuration of a run"),
        ("seed: ${", "is not "),
    ],
)
def test_what_no_run_writes_is_refused_by_every_reader(content: Any, says: str, reader: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        READERS[reader](write(tmp_path, content))


@pytest.mark.parametrize("reader", TYPED)
@pytest.mark.parametrize(
    "content",
    [
        "",
        {k: v for k, v in GOOD.items() if k != "loss"},
        changed("loss", {}),
        changed("loss.name", ["dpo"]),
        changed("loss.name", "dpo hydra/launcher=x"),
        changed("loss._target_", "os.system"),
        changed("loss.beta", "much"),
        changed("model._target_", "os.system"),
        changed("data.max_length", "x" * 300),
        changed("data.fields", "no mapping"),
        changed("trainer.output_dir", "/tmp"),
        changed("trainer.learning_rate", "fast"),
        changed("trainer.max_steps", 10.5),
        changed("reference_folder", {"a": [1]}),
        changed("seed", "one"),
        changed("seed", float("inf")),
    ],
)
def test_values_that_no_option_has_are_refused(content: Any, reader: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        READERS[reader](write(tmp_path, content))


@pytest.mark.parametrize("reader", READERS)
def test_what_a_run_writes_is_read(reader: str, tmp_path: Path) -> None:
    content = changed("data.fields", {"prompt": "a, 'b': {c}"}) | {"stages": {"sft": GOOD}}
    assert READERS[reader](write(tmp_path, content)) is not None


def test_relative_paths_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They start where the run was started, or where it last went on; what has a meaning of its own keeps it."""
    then, run = tmp_path / "then", tmp_path / "run"
    for folder in (then / "model", then / "world", then / "auto", run):
        folder.mkdir(parents=True)
    (then / "pairs.jsonl").write_text("")
    content = changed("model.path", "model")
    content["model"]["reference"] = "world"
    content["data"] |= {"path": None, "template": "auto", "eval_path": "gone.jsonl",
                        "mixture": [{"path": "pairs.jsonl"}, {"path": "org/name"}]}  # fmt: skip
    write(run, content)
    (run / "manifest.json").write_text(json.dumps({"folder": "/", "resumed": [{"folder": str(then)}]}))
    monkeypatch.chdir(tmp_path)
    for config in (config_of(run, tmp_path / "new"), RunFolder(run).run_config()):
        assert config.model.path == str(then / "model")
        assert config.model.reference == "world"
        assert (config.data.eval_path, config.data.template) == ("gone.jsonl", "auto")
        assert [source.path for source in config.data.sources()] == [str(then / "pairs.jsonl"), "org/name"]
    assert "model.path=model" in RunFolder(run).overrides(), "the command that is shown is the one that was given"
    for manifest in ({}, {"folder": 3}, {"folder": "then"}, {"resumed": [1]}, {"folder": "/\0"}):
        (run / "manifest.json").write_text(json.dumps(manifest))
        assert RunFolder(run).run_config().model.path == "model"
