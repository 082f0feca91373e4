"""Several runs in a row: what each is given, what is found again, what the last one starts from."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from prefopt.cli import main
from prefopt.config.compose import compose
from prefopt.config.stage_overrides import for_stage, of_stages
from prefopt.errors import UserError
from prefopt.losses.dpo import DPO
from prefopt.losses.sft import SFT
from prefopt.losses.simpo import SimPO
from prefopt.runs.stages import fingerprint, run_stages

# ---- what a stage is given


def test_a_stage_gets_what_is_not_tuned_for_one_stage_alone() -> None:
    given = ["experiment=sft_then_dpo", "loss=simpo", "loss.beta=3", "model=local", "model.path=m", "data.path=d",
             "trainer.learning_rate=1e-7", "trainer.bf16=true", "batch.records=8", "batch.max_tokens=512", "seed=3",
             "output_dir=o", "peft=lora", "model.reference=r"]  # fmt: skip
    kept = ["experiment=sft_then_dpo", "model=local", "model.path=m", "data.path=d", "trainer.bf16=true",
            "batch.max_tokens=512", "seed=3", "peft=lora"]  # fmt: skip
    assert for_stage(given, ["loss=sft", "trainer=sft"]) == [*kept, "loss=sft", "trainer=sft"]


def test_overrides_of_a_stage_replace_those_of_the_run() -> None:
    given = ["data=instruction_pairs", "data.path=p", "trainer.bf16=true", "experiment=x"]
    own = ["data=instruction_sft", "data.path=s", "trainer.bf16=false", "experiment=y"]
    assert for_stage(given, own) == own
    assert for_stage([], ["loss=sft", "loss=csft"]) == ["loss=csft"]


def test_overrides_of_stages_are_told_from_the_rest() -> None:
    plain, own = of_stages(["loss=dpo", "stages.sft.loss=csft", "stages.sft.trainer.max_steps=5", "stages.b.seed=1"])
    assert plain == ["loss=dpo"]
    assert own == {"sft": ["loss=csft", "trainer.max_steps=5"], "b": ["seed=1"]}
    with pytest.raises(UserError, match="name an option of the stage"):
        of_stages(["stages.sft=5"])


def test_the_method_of_sft_then_dpo_is_that_of_the_last_stage() -> None:
    config = compose(["experiment=sft_then_dpo"])
    assert isinstance(config.loss, DPO)
    assert [type(stage.loss) for stage in config.stages.values()] == [SFT]
    other = compose(["experiment=sft_then_dpo", "loss=simpo", "loss.beta=3", "trainer.learning_rate=1e-7"])
    assert other.loss == SimPO(beta=3.0)
    (sft,), (before,) = other.stages.values(), config.stages.values()
    assert fingerprint(sft) == fingerprint(before), "another method behind it does not change the SFT"


def test_a_model_of_ones_own_gets_rates_of_sft_and_of_preference_tuning(tmp_path: Path) -> None:
    config = compose(["experiment=sft_then_dpo", f"model.path={tmp_path}", "data.path=x.json"])
    assert config.trainer["learning_rate"] == 1e-6
    assert config.stages["sft"].trainer["learning_rate"] == 2e-5
    assert config.data.template == config.stages["sft"].data.template == "auto"
    longer = compose(["experiment=sft_then_dpo", "stages.sft.trainer.num_train_epochs=3", "trainer.bf16=true"])
    assert longer.stages["sft"].trainer["num_train_epochs"] == 3
    assert longer.trainer["num_train_epochs"] == 1
    assert longer.stages["sft"].trainer["bf16"] is True


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "..", "a.b", "a b", "a\n", "", "é", "a" * 101])
def test_a_stage_whose_name_climbs_out_of_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    config = compose(["experiment=sft_then_dpo", f"stages_folder={tmp_path / 'in' / 'stages'}"])
    config = replace(config, stages={"fine-1_A": config.stages["sft"], name: config.stages["sft"]})
    with pytest.raises(UserError, match="has letters, digits, _ and - only") as error:
        run_stages(config, log=lambda line: None, run=lambda *_, **__: pytest.fail("nothing is run"))
    assert f"stages.{name}: " in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["experiment=sft_then_dpo", "stages.stf.trainer.max_steps=3"], r"no such stage; did you mean 'sft'"),
        (["stages.sft.trainer.max_steps=3"], "experiment=sft_then_dpo has stages"),
        (["experiment=sft_then_dpo", "stages.sft.trainer.max_stepz=3"], r"stage sft: .*did you mean"),
        (["experiment=sft_then_dpo", "stages.sft.loss=sfft"], r"stage sft: unknown loss 'sfft'; did you mean 'sft'"),
        (["++stages={sft: {loss: sft}}"], r"stages\.sft must be a list of overrides"),
    ],
)
def test_mistakes_are_one_line_with_a_remedy(given: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(given)


def test_the_group_peft_says_what_is_trained_and_how_the_model_is_loaded(tmp_path: Path) -> None:
    found = {}
    for name in ("none", "lora", "dora", "qlora"):
        config = compose(["experiment=sft_then_dpo", f"model.path={tmp_path}", "data.path=x.json", f"peft={name}"])
        for one in (config, *config.stages.values()):
            found[name] = (one.peft.method, one.model.quantization, one.model.dtype)
    assert found == {
        "none": ("none", None, "float32"),
        "lora": ("lora", None, "float32"),
        "dora": ("dora", None, "float32"),
        "qlora": ("lora", "nf4", "bfloat16"),
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_qlora_is_refused_without_cuda(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *call.given, "output_dir=out", "peft=qlora"]) == 2
    assert (
        "model.quantization=nf4 needs a CUDA device, and there is none here: use peft=lora" in capsys.readouterr().err
    )


# ---- what makes two stages the same


def test_a_fingerprint_follows_what_the_model_depends_on(pairs_file: Path, tmp_path: Path) -> None:
    def of(*more: str) -> str:
        given = ["loss=sft", f"model.path={tmp_path}", "data=auto", f"data.path={pairs_file}", *more]
        return fingerprint(compose(given))

    base = of()
    assert of() == base
    assert of("output_dir=elsewhere", "trainer.logging_steps=9", "evaluation.texts=0") == base
    copied = tmp_path / "copy" / "pairs.jsonl"
    copied.parent.mkdir()
    shutil.copy(pairs_file, copied)
    different = {of("seed=1"), of("trainer.learning_rate=1e-4"), of("peft=lora"), of("batch.records=3"), base}
    assert len(different) == 5
    copied.write_text(copied.read_text() + '{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert of(f"data.path={copied}") != base
    for option in ("model.reference", "model.value_model"):
        other = tmp_path / option
        other.mkdir()
        (other / "model.safetensors").write_bytes(b"1")
        of_ppo = [] if option == "model.reference" else ["loss=ppo", "source=rollouts", "reward=world"]
        before = of(*of_ppo, f"{option}={other}")
        assert before not in {of(*of_ppo), base}
        (other / "model.safetensors").write_bytes(b"12")
        assert of(*of_ppo, f"{option}={other}") != before, f"{option} with other weights"
    assert fingerprint(compose(["loss=sft"]), "one") != fingerprint(compose(["loss=sft"]), "other")


# ---- runs


class Call:
    """`prefopt train experiment=sft_then_dpo` on a tiny model."""

    def __init__(self, model: Path, data: Path) -> None:
        self.given = [
            "experiment=sft_then_dpo", "model=local", f"model.path={model}", "data=auto", f"data.path={data}",
            "data.eval_records=8", "batch.records=8", "trainer.max_steps=2", "trainer.warmup_steps=0",
            "trainer.learning_rate=1e-3", "stages.sft.trainer.max_steps=3", "stages.sft.trainer.learning_rate=1e-2",
            "stages.sft.batch.records=8", "evaluation.max_new_tokens=4", "evaluation.kl_prompts=2",
        ]  # fmt: skip

    def __call__(self, out: str, *more: str) -> list[dict[str, Any]]:
        assert main(["train", *self.given, f"output_dir={out}", *more]) == 0
        stages: list[dict[str, Any]] = json.loads(Path(out, "stages.json").read_text())
        return stages


@pytest.fixture
def call(model_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(tmp_path)
    return Call(model_folder, pairs_file)


def first_loss(out: str) -> float:
    lines = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
    return float(next(line["loss"] for line in lines if "learning_rate" in line))


@pytest.mark.parametrize("peft", ["none", "lora"])
@pytest.mark.slow
def test_the_last_stage_starts_from_the_first_and_has_it_as_reference(call: Call, peft: str) -> None:
    (sft,) = call("one", f"peft={peft}")
    assert (sft["name"], sft["method"], sft["found"]) == ("sft", "sft", False)
    assert first_loss("one") == pytest.approx(math.log(2), rel=1e-5), "the reference is the SFT model"
    config = yaml.safe_load(Path("one/config.yaml").read_text())
    assert config["model"]["path"] == str(Path(sft["folder"], "final").resolve())
    kept = {p.name for p in Path(sft["folder"], "final").iterdir()}
    assert ("adapter_model.safetensors" in kept) == (peft == "lora")
    assert ("model.safetensors" in kept) == (peft == "none")
    # another method finds the SFT again, bytes and all
    before = {p: p.stat().st_mtime_ns for p in Path(sft["folder"]).rglob("*")}
    (again,) = call("two", f"peft={peft}", "loss=simpo", "loss.beta=2.5")
    assert again == {**sft, "found": True}
    assert {p: p.stat().st_mtime_ns for p in Path(sft["folder"]).rglob("*")} == before
    assert json.loads(Path("two/summary.json").read_text())["method"] == "simpo"
    # other settings of the SFT are another SFT
    (other,) = call("three", f"peft={peft}", "stages.sft.seed=5")
    assert not other["found"]
    assert other["folder"] != sft["folder"]


@pytest.mark.slow
def test_an_interrupted_stage_goes_on_from_its_checkpoint(call: Call) -> None:
    saving = ("trainer.save_strategy=steps", "trainer.save_steps=1")
    (whole,) = call("one", *saving)
    folder = Path(whole["folder"])
    truth = load_file(folder / "final" / "model.safetensors")
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoint-3")
    (again,) = call("two", *saving)
    assert not again["found"]
    assert again["folder"] == whole["folder"]
    found = load_file(folder / "final" / "model.safetensors")
    assert all((found[name] == weight).all() for name, weight in truth.items())
