"""TRL's configs become ours, compose, and keep their meaning."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import UserError
from prefopt.migrate.convert import convert
from prefopt.migrate.trl import DEFAULTS, LOSS_TYPES, MAX_LENGTH
from tests.migrate.settings import composed, written


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_type_of_dpo_composes(tmp_path: Path, loss_type: str) -> None:
    settings = {"loss_type": [loss_type], "beta": 0.07, "label_smoothing": 0.01 if loss_type == "exo_pair" else 0.0}
    config = composed(written(tmp_path, settings), tmp_path)
    name, beta, _ = LOSS_TYPES[loss_type]
    assert config.loss_name == name
    if beta:
        assert getattr(config.loss, beta) == 0.07


def test_every_loss_type_of_trl_is_known() -> None:
    trl = pytest.importorskip("trl", reason="the peers extra is not installed")
    field = next(f for f in dataclasses.fields(trl.DPOConfig) if f.name == "loss_type")
    assert set(re.findall(r"`'(\w+)'`", field.metadata["help"])) == set(LOSS_TYPES)


def test_defaults_are_those_of_the_installed_trl() -> None:
    trl = pytest.importorskip("trl", reason="the peers extra is not installed")
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig

    for cls in (trl.DPOConfig, trl.KTOConfig, ORPOConfig, CPOConfig):
        fields = {f.name: f.default for f in dataclasses.fields(cls)}
        assert fields["max_length"] == MAX_LENGTH
        for name, value in DEFAULTS[cls.__name__].items():
            assert fields[name] == value, (cls.__name__, name)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_a_whole_json_of_dpo_config(tmp_path: Path) -> None:
    """What `to_json_string` writes: hundreds of options at their defaults are not listed as lost."""
    trl = pytest.importorskip("trl", reason="the peers extra is not installed")
    config = trl.DPOConfig(output_dir=str(tmp_path / "theirs"), beta=0.3, bf16=False, report_to="none",
                           per_device_train_batch_size=2, gradient_accumulation_steps=4, warmup_steps=7)  # fmt: skip
    path = tmp_path / "dpo_config.json"
    path.write_text(config.to_json_string())
    found = convert(str(path), processes=4)
    assert found.no_equal == {}
    ours = composed(str(path), tmp_path, processes=4)
    assert (ours.loss_name, ours.loss.beta) == ("dpo", 0.3)  # type: ignore[attr-defined]
    assert ours.batch.records == 2 * 4 * 4
    assert {k: ours.trainer[k] for k in ("learning_rate", "warmup_steps", "lr_scheduler_type", "num_train_epochs")} == {
        "learning_rate": 1e-6, "warmup_steps": 7, "lr_scheduler_type": "linear", "num_train_epochs": 3.0,
    }  # fmt: skip
    assert ours.trainer["activation_checkpointing"] is True


def test_several_losses_keep_their_weights_and_betas(tmp_path: Path) -> None:
    settings = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0], "beta": 0.3}
    loss: Any = composed(written(tmp_path, settings), tmp_path).loss
    weights = {name: weight for name, weight in loss.terms.items() if weight}
    assert weights == {"dpo": 0.8, "bco_pair_zero": 0.2, "sft_token_mean": 1.0}
    assert loss.options["dpo"] == loss.options["bco_pair_zero"] == {"beta": 0.3}


def test_rpo_alpha_is_the_weight_of_the_likelihood(tmp_path: Path) -> None:
    """An option up to TRL 0.28, whose JSON has it as null."""
    null = convert(written(tmp_path, {"loss_type": ["sigmoid"], "rpo_alpha": None, "model_name_or_path": "m"}))
    assert (null.source, null.groups["loss"], "peft" in null.groups) == ("TRL's DPOConfig", "dpo", False)
    loss: Any = composed(written(tmp_path, {"rpo_alpha": 0.5, "beta": 0.3}), tmp_path).loss
    assert {name: weight for name, weight in loss.terms.items() if weight} == {"dpo": 1.0, "sft_token_mean": 0.5}
    with pytest.raises(UserError, match="leave one of them out"):
        convert(written(tmp_path, {"rpo_alpha": 0.5, "loss_type": ["sigmoid", "sft"]}))


@pytest.mark.parametrize(
    ("settings", "name", "fields"),
    [
        ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}, "f_dpo", {"alpha": 0.7}),
        ({"f_divergence_type": "js_divergence"}, "f_dpo", {}),
        ({"ld_alpha": 0.4}, "ld_dpo", {"alpha": 0.4}),
        ({"use_weighting": True}, "wpo", {"beta": 0.2}),
        ({"sync_ref_model": True, "ref_model_sync_steps": 64}, "tr_dpo", {"alpha": 0.6, "tau": 64}),
    ],
)
def test_options_that_make_another_loss(tmp_path: Path, settings: Any, name: str, fields: dict[str, Any]) -> None:
    config = composed(written(tmp_path, {"loss_type": "sigmoid", "beta": 0.2, **settings}), tmp_path)
    assert config.loss_name == name
    assert {k: getattr(config.loss, k) for k in fields} == pytest.approx(fields)


@pytest.mark.parametrize(
    ("kind", "settings", "name", "fields"),
    [
        ("KTOConfig", {"desirable_weight": 1.3, "beta": 0.2}, "kto", {"desirable_weight": 1.3, "beta": 0.2}),
        ("KTOConfig", {"loss_type": "apo_zero_unpaired"}, "kto_zero", {"beta": 0.1}),
        ("ORPOConfig", {"beta": 0.25}, "orpo", {"lam": 0.25}),
        ("CPOConfig", {"cpo_alpha": 0.5}, "cpo", {"beta": 0.1, "alpha": 0.5}),
        ("CPOConfig", {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}, "simpo",
         {"beta": 2.0, "gamma_beta_ratio": 0.5}),
        ("CPOConfig", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}, "cpo_simpo", {"alpha": 1.0}),
        ("CPOConfig", {"loss_type": "simpo", "alpha": 0.25, "simpo_gamma": 0.1, "cpo_alpha": 0.0}, "alpha_po",
         {"alpha": 0.25, "gamma_beta_ratio": 1.0}),
    ],
)  # fmt: skip
def test_the_other_trainers(tmp_path: Path, kind: str, settings: Any, name: str, fields: dict[str, float]) -> None:
    config = composed(written(tmp_path, settings), tmp_path, kind=kind)
    assert config.loss_name == name
    assert {k: getattr(config.loss, k) for k in fields} == pytest.approx(fields)
