"""Losses from outside packages: the example is installed with pip, and errors name the package that causes them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefopt.errors import UserError
from prefopt.losses import registry
from prefopt.plugin import outside

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "prefopt-mypo"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that sees the example installed, in a folder of its own."""
    work = tmp_path_factory.mktemp("outside")
    source, target = work / "source", work / "site"
    shutil.copytree(EXAMPLE, source)  # pip builds in the source tree
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    subprocess.run(command, check=True, cwd=work, capture_output=True, text=True)
    root = str(EXAMPLE.parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(target), root]), "OMP_NUM_THREADS": "1"}


def prefopt(environment: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from prefopt.cli import main; sys.exit(main())", *argv]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


MENU = """
from prefopt.cli import main
main(["losses", "--json"])
print("menu", flush=True)
main(["losses"])
"""


def test_the_menu_knows_it(installed: dict[str, str]) -> None:
    result = subprocess.run([sys.executable, "-c", MENU], env=installed, capture_output=True, text=True)
    listed, _, shown = result.stdout.partition("menu\n")
    menu = {entry["name"]: entry for entry in json.loads(listed)}
    assert menu["mypo"]["package"] == "prefopt-mypo"
    assert menu["mypo"]["hyperparameters"] == {"beta": 0.1, "cap": 4.0}
    assert menu["dpo"]["package"] == "prefopt"
    assert "mypo" in shown


def test_the_kit_checks_it(installed: dict[str, str]) -> None:
    result = prefopt(installed, "losses", "check", "mypo", "mypg", "--json")
    assert result.returncode == 0, result.stderr
    assert list(json.loads(result.stdout)) == ["mypo", "mypg"]


@pytest.mark.slow
def test_its_own_test_passes(installed: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests")]
    result = subprocess.run(command, env=installed, cwd=EXAMPLE, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


TRAIN = """
import json, sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.cli import main
from prefopt.config.compose import compose
from tests.data.tiny import tokenizer
from tests.train import own_texts

preset = compose(["experiment=mypo_short"])
print("preset", preset.loss_name, preset.loss.beta, preset.trainer["max_steps"])
print("options", compose(["loss=mypo", "loss.cap=3"]).loss)
print("misspelt", main(["train", "loss=mypo", "loss.capp=3"]))

work = Path(sys.argv[1])
made = tokenizer()
sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(vocab_size=len(made), num_key_value_heads=1, **sizes)).save_pretrained(work / "model")
made.save_pretrained(work / "model")
rows = [{"prompt": f"{i} ", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(8)]
(work / "pairs.json").write_text(json.dumps(rows))
options = [f"model.path={work}/model", "model=local", "data=auto", f"data.path={work}/pairs.json", "batch.records=4"]
options += ["trainer.max_steps=2", f"hydra.sweep.dir={work}/runs", f"reference_folder={work}/reference"]
print("train", main(["train", "-m", "loss=dpo,mypo", *options]))
for log in own_texts.run("mypg", work / "own").logs:
    print("own texts", log["step"], abs(log["loss"]) < 1, log["ratio/max_deviation"] < 1e-5)
print("help", flush=True)
main(["train", "loss=mypo", "--help"])
"""


@pytest.mark.slow
def test_train_knows_it(installed: dict[str, str], tmp_path: Path) -> None:
    """Its preset, its options, a misspelt one, a run side by side with dpo, own samples, `--help`; one process.

    On own samples the trainer checks the value of the first step, and the sampler against the scorer.
    """
    environment = installed | {"HYDRA_FULL_ERROR": "0", "PREFOPT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", TRAIN, str(tmp_path)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "preset mypo 0.3 20" in lines
    assert "options MyPO(beta=0.1, cap=3.0)" in lines
    assert "misspelt 2" in lines
    assert any("capp" in line and "cap" in line for line in result.stderr.splitlines())
    assert any("mypo" in line for line in lines[lines.index("help") :])
    assert "  loss.cap=4.0                          largest margin, in units of reward; useful range 2 to 10" in lines
    assert "train 0" in lines, result.stdout + result.stderr
    assert [line for line in lines if "own texts" in line] == ["own texts 1 True True", "own texts 2 True True"]
    runs = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("runs/*/summary.json")}
    assert sorted(runs) == ["0-dpo", "1-mypo"]


BROKEN = """
import sys
from prefopt.cli import main
from prefopt.config.options import choices
assert "mypo_short" in choices()["experiment"] and "torch" not in sys.modules
sys.exit(main(["train", "loss=dpo", "--help"]) or main(["train", "loss=mypo", "--cfg", "job"]))
"""


def test_a_broken_package_is_named_and_not_imported_for_the_menu(installed: dict[str, str], tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(installed["PYTHONPATH"].split(os.pathsep)[0], site)
    (site / "prefopt_mypo" / "__init__.py").write_text("import no_such_module\n")
    root = installed["PYTHONPATH"].split(os.pathsep)[1]
    environment = installed | {"PYTHONPATH": os.pathsep.join([str(site), root])}
    result = subprocess.run([sys.executable, "-c", BROKEN], env=environment, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1
    assert "of package prefopt-mypo failed to import: ModuleNotFoundError: No module named 'no_such" in result.stderr


# --- errors that name the package


class Point:
    """An entry point, as importlib.metadata gives them."""

    def __init__(self, name: str, package: str, loads: Any) -> None:
        self.name, self.value, self.dist, self._loads = name, "module:Class", SimpleNamespace(name=package), loads

    def load(self) -> Any:
        if isinstance(self._loads, Exception):
            raise self._loads
        return self._loads


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    found: list[EntryPoint] = []
    monkeypatch.setattr(outside, "entry_points", lambda group: found)
    registry._outside.cache_clear()
    yield found
    registry._outside.cache_clear()


def test_a_name_of_the_menu_cannot_be_taken(points: list[Any]) -> None:
    points.append(Point("dpo", "their-package", object))
    with pytest.raises(UserError, match=r"their-package registers a loss 'dpo', which prefopt already has"):
        registry.names()


def test_two_packages_cannot_have_one_name(points: list[Any]) -> None:
    points += [Point("ours", "first-package", object), Point("ours", "second-package", object)]
    with pytest.raises(UserError, match=r"first-package and second-package both register a loss 'ours'"):
        registry.names()


def test_a_failed_import(points: list[Any]) -> None:
    points.append(Point("ours", "broken-package", ImportError("no module named x")))
    assert "ours" in registry.names()  # the menu still prints
    with pytest.raises(UserError, match=r"'ours' of package broken-package failed to import: ImportError: no module"):
        registry.load("ours")


def test_a_class_without_needs(points: list[Any]) -> None:
    import dataclasses

    points.append(Point("ours", "needless-package", dataclasses.make_dataclass("Ours", [], frozen=True)))
    with pytest.raises(UserError, match=r"needless-package does not declare `needs"):
        registry.load("ours")


def test_something_that_is_no_dataclass(points: list[Any]) -> None:
    points.append(Point("ours", "odd-package", dict))
    with pytest.raises(UserError, match=r"odd-package must be a dataclass"):
        registry.load("ours")
