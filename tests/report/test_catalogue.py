"""The catalogue page equals the plugins, and the presets for users of other libraries give those libraries' numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from prefopt.config.compose import compose
from prefopt.losses import MENU, load_class
from prefopt.report import catalogue
from prefopt.testing.numbers import value_of
from prefopt.testing.samples import Named, declared
from tests.losses.conftest import batch  # noqa: F401
from tests.losses.trl_peer import as_items, mean_logps, trl_cpo, trl_dpo, trl_kto

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "losses.md").read_text() == catalogue.page(), "run `prefopt losses docs`"


def test_its_pictures_are_up_to_date() -> None:
    """Every picture that the page shows is there, and no other; drawn anew they are the same, for one matplotlib."""
    shown = set(re.findall(r"\]\(img/losses/(\w+)\.svg\)", (DOCS / "losses.md").read_text()))
    assert {path.stem for path in (DOCS / "img" / "losses").iterdir()} == shown
    for name in ("dpo", "kto_zero", "simpo"):
        kept = (DOCS / "img" / "losses" / f"{name}.svg").read_text()
        if f"Matplotlib v{matplotlib.__version__}" in kept:
            assert catalogue.picture(name) == kept


@pytest.mark.parametrize("name", MENU)
def test_a_card_has_all_its_parts(name: str) -> None:
    card = catalogue.card(load_class(name))
    assert card.summary.endswith(".")
    assert "=" in card.formula
    assert card.at_reference.endswith(".")
    assert len(card.differences) > 10


def test_a_section_has_the_facts_of_its_method() -> None:
    sections = dict(part.split("\n", 1) for part in catalogue.page().split("\n## "))
    assert "- Published learning rates: 3e-7 to 1e-6; arXiv:2405.14734, appendix" in sections["rrhf"]
    assert "- Published learning rates: 5e-7; tengxiao1/Cal-DPO" in sections["cal_dpo"]
    assert "- Raises the chosen completion's own log-prob." in sections["sft"]
    assert "the chosen completion's own log-prob" not in sections["dpo"]
    assert "Ranking: pointwise." in sections["bco_pair"]
    assert "- Checked on 2026-11-29 against the authors' code: GanjinZero/RRHF train.py@e1a2b61." in sections["rrhf"]


# --- presets


def preset(name: str) -> Any:
    return compose([f"experiment=compat/{name}"]).loss


def ours(loss: Any, numbers: Named) -> float:
    return float(value_of(loss, declared(loss.needs, numbers)).mean())


DPO_TRAINER: dict[str, tuple[Any, dict[str, Any]]] = {
    "trl_dpo": ("sigmoid", {}),
    "trl_ipo": ("ipo", {}),
    "trl_hinge": ("hinge", {}),
    "trl_robust": ("robust", {"label_smoothing": 0.1}),
    "trl_exo_pair": ("exo_pair", {"label_smoothing": 1e-3}),
    "trl_nca_pair": ("nca_pair", {}),
    "trl_sppo_hard": ("sppo_hard", {}),
    "trl_bco_pair": ("bco_pair", {}),
    "trl_discopop": ("discopop", {}),
    "trl_irpo": (["sigmoid", "sft"], {}),
    "trl_mpo": (["sigmoid", "bco_pair", "sft"], {"loss_weights": [0.8, 0.2, 1.0]}),
}


@pytest.mark.parametrize("name", DPO_TRAINER)
def test_presets_for_dpo_trainer(batch: Named, name: str) -> None:  # noqa: F811
    loss_type, settings = DPO_TRAINER[name]
    assert ours(preset(name), batch) == pytest.approx(trl_dpo(batch, loss_type, **settings), abs=1e-6)


def test_preset_for_sft_trainer(batch: Named) -> None:  # noqa: F811
    demonstrations = {name: batch[name] for name in ("chosen", "chosen_num_tokens", "ids")}
    assert ours(preset("trl_sft"), demonstrations) == pytest.approx(trl_dpo(batch, "sft"), abs=1e-6)


def test_presets_for_kto_trainer(batch: Named) -> None:  # noqa: F811
    items = as_items(batch)
    mismatched = (items["completion"].flip(0) + 2, items["ref_completion"].flip(0))
    numbers = items | {"mismatched": mismatched[0], "ref_mismatched": mismatched[1]}
    assert ours(preset("trl_kto"), numbers) == pytest.approx(trl_kto(items, mismatched, "kto"), abs=1e-6)
    expected = trl_kto(items, mismatched, "apo_zero_unpaired")
    assert ours(preset("trl_apo_zero_unpaired"), items) == pytest.approx(expected, abs=1e-6)


def test_presets_for_cpo_and_orpo_trainer(batch: Named) -> None:  # noqa: F811
    """At their defaults; their likelihood terms, which differ by the tokens averaged over, are written out."""
    from types import SimpleNamespace

    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOTrainer

    likelihood = float(-mean_logps(batch)[0].mean())
    contrast = trl_cpo(batch["chosen"], batch["rejected"], "sigmoid")
    assert ours(preset("trl_cpo"), batch) == pytest.approx(contrast + likelihood, abs=1e-6)
    fields = CPOConfig.__dataclass_fields__
    assert (fields["beta"].default, fields["simpo_gamma"].default, fields["cpo_alpha"].default) == (0.1, 0.5, 1.0)
    contrast = trl_cpo(*mean_logps(batch), "simpo", beta=0.1, simpo_gamma=0.5)
    assert ours(preset("trl_simpo"), batch) == pytest.approx(contrast + likelihood, abs=1e-6)
    plain = trl_cpo(*mean_logps(batch), "simpo", beta=2.0, simpo_gamma=1.0)
    assert ours(preset("trl_simpo_plain"), batch) == pytest.approx(plain, abs=1e-6)
    stub = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    odds, *_ = ORPOTrainer.odds_ratio_loss(stub, *mean_logps(batch))
    assert ours(preset("trl_orpo"), batch) == pytest.approx(likelihood - float(odds.mean()), abs=1e-6)


@pytest.mark.slow
def test_every_preset_composes_and_those_of_trl_are_tested() -> None:
    listed = catalogue.presets()
    for name in listed:
        assert preset(name) is not None
    by_hand = {"trl_sft", "trl_kto", "trl_apo_zero_unpaired", "trl_cpo", "trl_simpo", "trl_simpo_plain", "trl_orpo"}
    assert {name for name in listed if name.startswith("trl_")} == set(DPO_TRAINER) | by_hand
