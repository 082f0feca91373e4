"""The benchmarks count correctly, and their pages match the result files."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "peers")]

import controlled  # noqa: E402
import hh_rlhf  # noqa: E402
import overoptimisation  # noqa: E402
import page_parts  # noqa: E402
import planner  # noqa: E402
import rlhf  # noqa: E402
import rlhf_tables  # noqa: E402
import run_prefopt  # noqa: E402
import tables  # noqa: E402
import throughput  # noqa: E402

from prefopt.compare.frontier import Runs  # noqa: E402
from prefopt.config.compose import compose  # noqa: E402
from prefopt.data.tokens import TokenRecord  # noqa: E402
from prefopt.engine.packing import EpochPlan, Lengths  # noqa: E402
from prefopt.errors import UserError  # noqa: E402
from prefopt.plugin import Data  # noqa: E402
from prefopt.worlds.build import WorldFiles  # noqa: E402


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda p: str(p.relative_to(BENCHMARKS.parent)))
def test_pages_match_the_results(page: Path) -> None:
    text = page.read_text()
    assert tables.rewritten(text) == text, "run `python benchmarks/tables.py`"


def test_every_table_has_its_place() -> None:
    """Results that are measured later appear on a page."""
    pages = "".join(page.read_text() for page in tables.PAGES)
    assert [name for name in tables.SECTIONS if f"<!-- {name}: " not in pages] == []


def test_pages_of_the_referee_come_from_the_results_too(tmp_path: Path) -> None:
    """`make results` writes them; a missing file names the command that measures it, and an old page is noticed."""
    recipe = (BENCHMARKS.parent / "Makefile").read_text().partition("\nresults:")[2].partition("\n\n")[0]
    assert "-m benchmarks.errata\n" in recipe
    assert recipe.endswith("-m benchmarks.referee --pages")
    with pytest.raises(
        SystemExit, match=r"batch_split.json is missing: `python benchmarks/batch_split.py` measures it"
    ):
        page_parts.results(tmp_path / "batch_split.json", "python benchmarks/batch_split.py")
    page = tmp_path / "page.md"
    page.write_text("<!-- a: begin -->\nold\n<!-- a: end -->\n")
    text = page_parts.filled(page, {"a": "new\n"})
    with pytest.raises(SystemExit, match=r"page.md is out of date: run `make results`"):
        page_parts.write(page, text, check=True, command="make results")
    page_parts.write(page, text, check=False, command="make results")
    assert page.read_text() == "<!-- a: begin -->\nnew\n<!-- a: end -->\n"
    with pytest.raises(ValueError, match=r"page.md needs one <!-- b: begin -->"):
        page_parts.filled(page, {"b": ""})


def test_pictures_match_the_results() -> None:
    """Redrawn with the same matplotlib, they are identical; and every picture that a page shows exists."""
    drawn = tables.pictures()
    for file, content in drawn.items():
        kept = file.read_text()
        if f"<!-- matplotlib {matplotlib.__version__} -->" in kept:
            assert kept == content, f"{file.name}: run `make results`"
    for page in tables.PAGES:
        for shown in re.findall(r"!\[[^]]*\]\(([^)]+\.svg)\)", page.read_text()):
            assert (page.parent / shown).is_file(), f"{page.name} shows {shown}, which does not exist"


@pytest.mark.parametrize("suite", ["controlled", "displacement", "noise", "length", "scarce"])
@pytest.mark.slow
def test_a_suite_can_be_composed(suite: str, world_files: WorldFiles) -> None:
    """Every job of a suite is a valid configuration for `prefopt train`, and no two rows are the same run."""
    module = importlib.import_module(suite)
    lines = {
        "controlled": lambda: [(line, v) for line in (*module.METHODS, module.SFT) for v in line.values or (None,)],
        "noise": lambda: [(line, None) for line in module.lines(0.2)],
        "scarce": lambda: [(line, None) for line in module.lines(0.5)],
    }.get(suite, lambda: [(line, None) for line in module.LINES])()
    composed = [(compose(line.overrides(value)), line) for line, value in lines]
    said = [(config.plain() | {"offset": line.seed_offset, "swapped": line.sides_swapped}) for config, line in composed]
    assert len({str(one) for one in said}) == len(said)
    has_other_controls = suite in ("controlled", "noise", "scarce")
    assert has_other_controls or any(line.seed_offset for line, _ in lines)


def test_suites_on_own_samples() -> None:
    """Rows have names of their own, and every prediction is about one of them, or about what is shown beside them."""
    beside = {*rlhf_tables.OFFLINE, *rlhf_tables.YARDSTICKS}
    for suite, content in rlhf.SUITES.items():
        names = [line.name for line in content.lines]
        assert len(set(names)) == len(names)
        for said in rlhf_tables.predictions(f"rlhf_{suite}"):
            for place in (said["left"], said["right"]):
                assert len(place) == 1 or place[0] in {*names, *beside}, said["claim"]
    rows = {*(f"RLOO, {name}" for name in overoptimisation.rewards())}
    rows |= {f"DPO, {pairs} pairs" for pairs in overoptimisation.PAIRS}
    for said in rlhf_tables.predictions("overoptimisation"):
        assert {said["left"][0], said["right"][0]} <= rows
    line = next(line for line in rlhf.SUITES["labels"].lines if "better" in line.name)
    config = compose([*line.overrides(1.0), "trainer.max_steps=1"])
    assert (config.source, config.reward, config.rollout.num_generations * config.batch.records) == (
        "rollouts", "world", 128,
    )  # fmt: skip


def test_tables_of_overoptimisation() -> None:
    """A line that follows the law has its constants in the table; what did not run is a dash."""
    d = np.array([0.5, 1.0, 2.0])
    gains = d * (1.5 - 0.4 * np.log(d))
    points = [{"kl": x, "true_reward": y - 0.2, "proxy": 2 * x} for x, y in zip(d**2, gains, strict=True)]
    runs = [SimpleNamespace(figures=point) for point in points] * 3
    fit = overoptimisation.fit(runs, start=-0.2)
    assert fit["alpha"] == pytest.approx(1.5, abs=1e-3)
    assert fit["beta"] == pytest.approx(0.4, abs=1e-3)
    lost = {"kl": None, "true_reward": None, "proxy": None}
    rows = [{"name": "RLOO, 250 pairs", "points": points, "fit": fit}, {"name": "x", "points": [lost], "fit": None}]
    result = {"setting": {"start": -0.2, "seeds": 3, "steps": 1}, "rows": rows, "worker_seconds": 60}
    page = rlhf_tables.overoptimisation(result)
    assert "1.50 (1.50 to 1.50) | 0.40 (0.40 to 0.40)" in page
    assert "not run" in page
    assert "<svg" in rlhf_tables.picture_overoptimisation(result)


def test_methods_are_compared_where_both_reach_a_kl() -> None:
    """At a KL that both reach, the better method wins; a KL that one does not reach is left out."""
    rng = np.random.default_rng(0)
    kl = np.broadcast_to(np.array([0.3, 1.2])[None, :, None], (3, 2, 200))
    low, high = (Runs(level + 0.1 * rng.normal(size=kl.shape), kl) for level in (0.0, 1.0))
    found = controlled.compared({"low": low, "high": high})
    assert [(pair["kl"], pair["a"], pair["b"], pair["verdict"]) for pair in found] == [
        (0.5, "low", "high", "worse"),
        (1.0, "low", "high", "worse"),
    ]


def test_one_row_of_the_planner_benchmark() -> None:
    row = planner.simulate(1024, 8, 16)  # 16 pairs a process: 8 steps of 128
    assert {"records", "processes", "imbalance", "seconds", "peak_gib"} <= row.keys()
    assert (row["batch"], row["steps"]) == (128, 8)
    assert 0 <= row["imbalance_mean"] <= row["imbalance"] <= 0.02
    assert row["last"] == pytest.approx(row["imbalance"], abs=0.02)  # 1,024 is a multiple of 128: no smaller batch


def test_resampled_lengths_have_the_measured_means() -> None:
    """Standard errors at 40,000 draws: SDs of about 110, 35 and 40 tokens over 200, below 0.6; four of them: 2.4."""
    prompt, completions = hh_rlhf.sample_lengths(40_000, seed=0)
    assert abs(prompt.mean() - 125.35) < 2.4
    assert abs(completions[0::2].mean() - 40.75) < 2.4
    assert abs(completions[1::2].mean() - 50.96) < 2.4
    assert min(prompt.min(), completions.min()) >= 1


def test_useful_tokens_and_flops_by_hand() -> None:
    """A pair of 4 prompt tokens and completions of 3 and 2, of which 2 and 1 are fed: 7 tokens.

    Width 2, one layer, one head of its own keys, inner 3, 5 words: weights 4 * 4 + 3 * 2 * 3 = 34. Linear: 2 * 34 * 7 =
    476. Attention: 4 * 2 * (16 / 2 + 2 * 4 + 4 / 2 + 1 * 4 + 1 / 2) = 8 * 22.5 = 180. Head: 2 * 2 * 5 * 5 = 100.
    Forward and backward: 3 * (476 + 180 + 100) = 2268.
    """
    config = SimpleNamespace(
        hidden_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=3,
        vocab_size=5,
    )
    lengths = np.array([[4, 3, 2]])
    assert throughput.useful_tokens(lengths) == 7
    assert throughput.useful_flops(lengths, config) == 2268


def test_the_shuffle_restores_the_order() -> None:
    records = [
        TokenRecord(id=str(i), kind=Data.PAIRS, prompt=np.array([i]), completions=(np.array([1]), np.array([2, 3])))
        for i in range(12)
    ]
    placed = run_prefopt.in_training_order(records)
    order = EpochPlan(Lengths.of(placed), seed=run_prefopt.SEED, epoch=0, records=4, max_tokens=64).order
    assert [placed[i].id for i in order] == [str(i) for i in range(12)]


def test_pairs_are_cut_at_the_last_turn(shared_data: Path) -> None:
    """2,312 rows less 5 whose dialogues differ and 4 with a blank chosen reply."""
    pairs = hh_rlhf.read_pairs(shared_data)
    assert len(pairs) == 2303
    assert all(pair["prompt"].endswith("\n\nAssistant:") for pair in pairs)


def test_missing_data_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data"):
        hh_rlhf.data_folder(str(tmp_path))
