"""Every named experiment composes, has the numbers of its source, and the small ones run."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest

from prefopt.cli import main
from prefopt.config.compose import compose
from prefopt.config.run_config import RunConfig
from prefopt.losses import registry
from tests.cli.conftest import sketched

__all__ = ["sketched"]

FOLDER = Path(__file__).parents[2] / "conf" / "experiment"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PAPERS = [name for name in NAMES if re.match(r"[a-z]+20\d\d_", name)]
SMALL = [name for name in NAMES if name.endswith("_world")] + ["orpo_single_stage"]
ASK_FOR_DATA = ("smollm2_lora", "apertus2025_qrpo_8b")
CORE = ("dpo", "simpo", "orpo", "kto", "ipo")


@cache
def composed(name: str) -> RunConfig:
    return compose([f"experiment={name}"])


@pytest.mark.parametrize("name", NAMES)
def test_composes(name: str) -> None:
    config = composed(name) if name not in ASK_FOR_DATA else compose([f"experiment={name}", "data.path=pairs.json"])
    assert config.model.path
    for stage in config.stages.values():
        assert stage.loss_name == "sft"
        assert stage.model.path == config.model.path


def test_every_core_method_has_a_recipe_of_its_paper_and_a_small_one() -> None:
    methods = {name: composed(name).loss_name for name in PAPERS}
    for method in CORE:
        family = [name for name, loss in methods.items() if loss.split("_")[0] == method]
        assert [n for n in family if n.endswith("_world")], method
        assert [n for n in family if not n.endswith("_world")], method
        assert all(re.match(rf"[a-z]+20\d\d_{method}_", n) for n in family)


@pytest.mark.parametrize("name", PAPERS)
def test_every_setting_says_where_it_is_from(name: str) -> None:
    """A comment on its line, or one at the head for what no source gives."""
    text = (FOLDER / f"{name}.yaml").read_text()
    head, _, body = text.partition("defaults:")
    assert len(head.splitlines()) > 1
    if name.endswith("_world"):
        assert "20" in head
        return
    assert "Sources:" in head
    settings = [line for line in body.splitlines() if re.match(r"\s+\w+: \S", line)]
    said = [line for line in settings if "#" in line]
    unsaid = {line.split(":")[0].strip() for line in settings if line not in said}
    assert unsaid <= {"optim"}, unsaid
    if unsaid:
        assert "paged_adamw_32bit" in head, "where the optimizer differs, the head says so"


@pytest.mark.parametrize(
    ("name", "loss", "records", "rate"),
    [
        ("rafailov2023_dpo_hh", {"beta": 0.1}, 64, 5e-7),
        ("meng2024_simpo_mistral_base", {"beta": 2.0, "gamma_beta_ratio": 1.6 / 2.0}, 128, 3e-7),
        ("meng2024_simpo_llama3_base", {"beta": 2.0, "gamma_beta_ratio": 0.5}, 2 * 16 * 4, 6e-7),
        ("meng2024_simpo_llama3_instruct", {"beta": 2.5, "gamma_beta_ratio": 0.55}, 2 * 16 * 4, 1e-6),
        ("hong2024_orpo_mistral_beta", {"lam": 0.1}, 8 * 4, 5e-6),
        ("ethayarajh2024_kto_llama3", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}, 32 // 2, 5e-6),
        ("azar2023_ipo_zephyr", {"tau": 0.01}, 128, 5e-7),
        ("tunstall2023_dpo_zephyr", {"beta": 0.01}, 8 * 2 * 8, 5e-7),
        ("lambert2024_dpo_tulu3_8b", {"beta": 5.0}, 16 * 8, 5e-7),
        ("olmo2025_dpo_olmo3_7b_instruct", {"beta": 5.0}, 4 * 32, 1e-6),
        ("bakouch2025_apo_smollm3", {"beta": 0.05}, 2 * 16, 1e-6),
        ("apertus2025_qrpo_8b", {"beta": 5.0, "max_beta": 0.1}, 512, 5e-7),
    ],
)
def test_numbers_of_the_sources(name: str, loss: dict[str, float], records: int, rate: float) -> None:
    config = composed(name)
    assert config.loss == registry.load(config.loss_name, **loss)
    assert config.batch.records == records
    assert config.trainer["learning_rate"] == rate


@pytest.mark.parametrize("name", SMALL)
def test_the_small_ones_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["trainer.max_steps=2", "data.max_records=64", "batch.records=16", "evaluation.kl_prompts=2"]
    assert main(["train", f"experiment={name}", *given, "output_dir=out"]) == 0
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["method"] == composed(name).loss_name
