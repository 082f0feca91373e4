"""`prefopt import`: settings of other trainers become ours, compose, and say what they lose."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefopt.cli import main
from prefopt.config.compose import compose
from prefopt.config.run_config import RunConfig
from prefopt.errors import UserError
from prefopt.migrate import read
from prefopt.migrate.trl import DEFAULTS, MAX_LENGTH, PLAIN

GIVEN = ["model.path=model", "data.path=pairs.jsonl"]


def written(folder: Path, settings: dict[str, Any], name: str = "theirs.json") -> str:
    path = folder / name
    path.write_text(json.dumps(settings) if name.endswith("json") else yaml.safe_dump(settings))
    return str(path)


def composed(source: Any, folder: Path, **how: Any) -> RunConfig:
    """What `prefopt train experiment=FILE` would run."""
    found = read(source, **how)
    (folder / "ours.yaml").write_text(found.yaml())
    open_ = [o for o in GIVEN if found.settings.get(o.split("=")[0]) == "???"]
    return compose([f"experiment={folder}/ours.yaml", "model=local", "data=auto", *open_])


@pytest.mark.parametrize("loss_type", PLAIN)
def test_every_loss_type_of_dpo_composes(tmp_path: Path, loss_type: str) -> None:
    settings = {"loss_type": [loss_type], "beta": 0.07, "label_smoothing": 0.01 if loss_type == "exo_pair" else 0.0}
    config = composed(written(tmp_path, settings), tmp_path)
    name, beta, _ = PLAIN[loss_type]
    assert config.loss_name == name
    if beta:
        assert getattr(config.loss, beta) == 0.07


def test_every_loss_type_of_trl_is_known() -> None:
    import re

    trl = pytest.importorskip("trl", reason="the peers extra is not installed")
    field = next(f for f in dataclasses.fields(trl.DPOConfig) if f.name == "loss_type")
    assert set(re.findall(r"`'(\w+)'`", field.metadata["help"])) == set(PLAIN)


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
    found = read(str(path), processes=4)
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
    assert weights == {"dpo": 0.8, "bco_pair": 0.2, "sft_token_mean": 1.0}
    assert loss.options["dpo"] == loss.options["bco_pair"] == {"beta": 0.3}


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
         {"alpha": 0.25, "gamma": 0.1}),
    ],
)  # fmt: skip
def test_the_other_trainers(tmp_path: Path, kind: str, settings: Any, name: str, fields: dict[str, float]) -> None:
    config = composed(written(tmp_path, settings), tmp_path, kind=kind)
    assert config.loss_name == name
    assert {k: getattr(config.loss, k) for k in fields} == pytest.approx(fields)


def test_a_command_line(tmp_path: Path) -> None:
    words = shlex.split(
        "trl dpo --model_name_or_path org/model --dataset_name org/data --beta 0.05 --learning_rate=5e-7 --use_peft "
        "--lora_r 8 --lora_target_modules q_proj v_proj --max_prompt_length 128 --eval_strategy steps --bf16 false"
    )
    config = composed(words, tmp_path)
    assert (config.model.path, config.data.path, config.data.eval_split) == ("org/model", "org/data", "test")
    assert (config.peft.method, config.peft.r, config.peft.target_modules) == ("lora", 8, ["q_proj", "v_proj"])
    assert config.trainer["learning_rate"] == 5e-7
    assert config.trainer["bf16"] is False
    found = read(words)
    assert "max_prompt_length" in found.no_equal
    by_words, by_file = compose(found.overrides).plain(), config.plain()
    del by_words["output_dir"], by_file["output_dir"]  # they have the time in them
    assert by_words == by_file


LLAMA_FACTORY = {
    "stage": "dpo", "model_name_or_path": "org/model", "finetuning_type": "lora", "lora_rank": 4, "lora_target": "all",
    "pref_beta": 0.1, "pref_loss": "sigmoid", "dataset": "mine", "template": "llama3", "cutoff_len": 512,
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": "5.0e-6", "val_size": 0.1,
    "num_train_epochs": 2.0, "warmup_ratio": 0.1, "bf16": False, "plot_loss": True, "neftune_noise_alpha": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "name", "fields"),
    [
        ({}, "dpo", {"beta": 0.1}),
        ({"pref_ftx": 0.5}, "irpo", {"alpha": 0.5}),
        ({"dpo_label_smoothing": 0.2}, "cdpo", {"label_smoothing": 0.2}),
        ({"pref_loss": "ipo"}, "ipo", {"tau": 0.1}),
        ({"pref_loss": "orpo"}, "orpo", {"lam": 0.1}),
        ({"pref_loss": "simpo", "simpo_gamma": 0.5}, "simpo", {"gamma_beta_ratio": 5.0}),
        ({"stage": "kto", "kto_chosen_weight": 1.5}, "kto", {"desirable_weight": 1.5}),
        ({"stage": "sft"}, "sft_token_mean", {}),
    ],
)
def test_llama_factory(tmp_path: Path, change: Any, name: str, fields: dict[str, float]) -> None:
    config = composed(written(tmp_path, LLAMA_FACTORY | change, "theirs.yaml"), tmp_path)
    assert config.loss_name == name
    assert {k: getattr(config.loss, k) for k in fields} == pytest.approx(fields)
    assert (config.peft.method, config.peft.r, config.peft.alpha) == ("lora", 4, 8)
    assert (config.batch.records, config.data.max_length, config.data.eval_fraction) == (8, 512, 0.1)
    assert {k: config.trainer[k] for k in ("learning_rate", "warmup_steps")} == {
        "learning_rate": 5e-6,
        "warmup_steps": 0.1,
    }


def test_llama_factorys_data_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "mine.json"}}))
    found = read(written(tmp_path, LLAMA_FACTORY, "theirs.yaml"))
    assert found.settings["data.path"] == str(tmp_path / "data" / "mine.json")
    assert set(found.no_equal) == {"neftune_noise_alpha"}


def test_what_is_lost_and_what_differs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = written(tmp_path, {"loss_type": "hinge", "neftune_noise_alpha": 5, "no_such_option": 1})
    ours = tmp_path / "ours.yaml"
    assert main(["import", theirs, "--to", str(ours)]) == 0
    said = capsys.readouterr().out
    assert "neftune_noise_alpha: noise on embeddings" in said
    assert "no_such_option: there is no such option here" in said
    assert "it is RSO's, not `slic_hf`" in " ".join(said.split())  # in the words of the compat preset
    assert "still to be given: model.path, data.path" in said
    assert "# No equal here: neftune_noise_alpha" in ours.read_text()
    assert main(["import", theirs, "--to", str(ours)]) == 2  # it is there already
    assert main(["import", theirs, "--json"]) == 0
    assert {"overrides", "no_equal", "differs"} <= json.loads(capsys.readouterr().out).keys()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("training_args.bin", "\x80\x04", "pickle"),
        ("broken.json", "{", "cannot be read"),
        ("list.yaml", "[1, 2]", "not a table"),
        ("object.yaml", "!!python/object/apply:os.system ['true']", "cannot be read"),
        ("unknown.json", '{"beta": 0.1}', "--class"),
        ("ppo.yaml", "stage: ppo", "not offered"),
        ("cpo.json", '{"loss_type": "hinge", "cpo_alpha": 1}', "slic_hf"),
    ],
)
def test_refusals_name_the_remedy(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        read(str(path))


@pytest.mark.parametrize("text", ["- 1", "{", None])
def test_an_experiment_file_that_is_none_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "ours.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="experiment="):
        compose([f"experiment={path}"])
