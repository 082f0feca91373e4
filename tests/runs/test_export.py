"""`prefopt export`: what the folder has, that it is the run's model, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
)

import prefopt.models.export_folder as module
from prefopt.cli import main
from prefopt.data.tokens import TokenRecord
from prefopt.engine.gates import TOLERANCE
from prefopt.engine.scoring import score
from prefopt.errors import PrefoptError, UserError
from prefopt.models.adapters import is_adapted
from prefopt.models.export_folder import ExportCheck, check
from prefopt.models.load import load_as_trained, load_model
from prefopt.models.model_config import ModelConfig
from prefopt.models.processor import load_image_inputs
from prefopt.plugin import Data
from prefopt.report.page import markdown_line
from prefopt.runs.export import export
from prefopt.runs.run_folder import RunFolder
from tests.models import pictures

FRESH = Path(module.__file__).with_name("export_fresh.py")


@pytest.fixture(scope="session")
def exported(finished: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for peft, run in finished.items():
        made[peft] = tmp_path_factory.mktemp("exported") / peft
        licence = ["--license", "apache-2.0"] if peft == "lora" else []
        assert main(["export", str(run), "--to", str(made[peft]), *licence]) == 0
    return made


def test_settings_of_generation_that_are_not_saved_are_named(finished: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(finished["none"], tmp_path / "run")
    file = run / "final" / "generation_config.json"
    settings = json.loads(file.read_text()) | {"do_sample": False, "temperature": 0.6}
    file.unlink()
    file.write_text(json.dumps(settings))
    with pytest.raises(
        UserError, match=r"final/generation_config\.json .*`temperature`: .*do_sample.*export again"
    ) as e:
        export(run, tmp_path / "made")
    assert "space" not in str(e.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_plain_transformers_loads_the_runs_model(
    finished: dict[str, Path], exported: dict[str, Path], peft: str
) -> None:
    folder = exported[peft]
    kept = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json",
            "README.md"} <= kept  # fmt: skip
    assert not [name for name in kept if "adapter" in name or name.endswith((".bin", ".pt"))]
    assert not any("lora" in name for name in load_file(folder / "model.safetensors"))
    ids = np.arange(5, 25, dtype=np.int32)
    record = TokenRecord(id="0", kind=Data.DEMONSTRATIONS, prompt=ids[:8], completions=(ids[8:],))
    own = load_as_trained(ModelConfig(path=str(finished[peft] / "final")))
    assert is_adapted(own) == (peft == "lora")
    start = load_model(ModelConfig(path=RunFolder.open(finished[peft]).config["model"]["path"]))
    ours, before = (float(score(m, [record])[0].sum[0]) for m in (own, start))
    logits = AutoModelForCausalLM.from_pretrained(folder)(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, 7:-1]
    picked = logits.log_softmax(-1).gather(1, torch.from_numpy(ids[8:].astype(np.int64))[:, None])
    assert float(picked.sum().detach()) == pytest.approx(ours, abs=len(ids) * TOLERANCE[torch.float32])
    assert abs(ours - before) > 5 * len(ids) * TOLERANCE[torch.float32], "training moved it"


def test_the_template_of_training_goes_along_and_its_end_ends_a_text(exported: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported["none"])
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ends = GenerationConfig.from_pretrained(exported["none"]).eos_token_id
    assert {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")} <= set(ends)


def test_the_card_is_written_from_the_run(exported: dict[str, Path], finished: dict[str, Path]) -> None:
    card = (exported["lora"] / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "transformers"
    assert "dpo" in front["tags"]
    assert "base_model" not in front, "a folder of this machine is no name on the hub"
    assert "L = -log sigmoid(beta * (rho_w - rho_l))" in card
    assert "<https://arxiv.org/abs/2305.18290>" in card
    assert "| beta | 0.1 |" in card
    assert "adapter (lora, r=16, alpha=32), merged" in card
    assert "40 rows read, 32 records to train on, 8 held out" in card
    summary = json.loads((finished["lora"] / "summary.json").read_text())
    was, now = (100 * summary[when]["accuracies/logps"] for when in ("before", "after"))
    row = next(line for line in card.splitlines() if "the likelier" in line)
    assert f"| {was:.1f} ± " in row
    assert f"| {now:.1f} ± " in row
    assert "Not stated at export" in (exported["none"] / "README.md").read_text()
    assert "{{" not in card


def test_nothing_from_outside_breaks_the_card() -> None:
    assert markdown_line("a\x1b[31m\nb|c<script>`#") == r"a \[31m b\|c\<script\>\`\#"


def test_the_check_runs_without_prefopt() -> None:
    """The first lines of the script that loads the folder make the package unavailable."""
    code = FRESH.read_text().split("def main")[0] + "\nimport prefopt"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "import of prefopt halted" in done.stderr


@pytest.mark.slow
def test_the_check_is_held_to_the_precision_and_finds_other_weights(finished: dict[str, Path], tmp_path: Path) -> None:
    done = export(finished["none"], tmp_path / "out")
    assert done.check.error <= done.check.tolerance == TOLERANCE[torch.float32]
    assert done.url is None
    assert not (done.folder / "README.md").exists(), "no card was asked for"
    other = load_model(ModelConfig(path=str(finished["none"] / "final")))
    with torch.no_grad():
        next(p for p in other.parameters() if p.ndim > 1).mul_(1.1)
    with pytest.raises(PrefoptError, match="not those of the run"):
        check(done.folder, other, AutoTokenizer.from_pretrained(done.folder), torch.float32, [])


def test_a_failed_check_leaves_nothing(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path, *_: Any) -> None:
        assert (folder / "model.safetensors").exists()
        raise PrefoptError("no")

    monkeypatch.setattr(module, "check", broken)
    with pytest.raises(PrefoptError, match="no"):
        export(finished["none"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_taken_folder_and_an_unfinished_run_are_refused(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("kept")
    assert main(["export", str(finished["none"]), "--to", str(tmp_path / "taken")]) == 2
    assert "already there and not empty" in capsys.readouterr().err
    assert (tmp_path / "taken" / "mine.txt").read_text() == "kept"
    assert main(["export", str(tmp_path / "no"), "--to", str(tmp_path / "out")]) == 2
    assert "not the folder of a run" in capsys.readouterr().err
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("loss: {name: dpo}\n")
    with pytest.raises(UserError, match="no final"):
        export(unfinished, tmp_path / "out")
    with pytest.raises(UserError, match="--dtype int8"):
        export(finished["none"], tmp_path / "out", dtype="int8")


def test_push_uploads_the_finished_folder(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a stand-in for the hub: which calls are made, with what. The check of the folder has tests of its own."""
    import huggingface_hub

    calls: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, name: str, **given: Any) -> None:
            calls.append(("create", {"name": name, **given}))

        def upload_folder(self, **given: Any) -> None:
            calls.append(("upload", given | {"files": sorted(p.name for p in Path(given["folder_path"]).iterdir())}))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(module, "check", lambda *_: ExportCheck(tokens=8, error=0.0, tolerance=1e-4))
    out = tmp_path / "out"
    given = ["export", str(finished["none"]), "--to", str(out), "--dtype", "bfloat16", "--push", "me/tuned"]
    assert main(given) == 0
    assert [name for name, _ in calls] == ["create", "upload"]
    assert calls[0][1] == {"name": "me/tuned", "private": True, "exist_ok": True}
    assert calls[1][1]["repo_id"] == "me/tuned"
    assert {"README.md", "model.safetensors"} <= set(calls[1][1]["files"])
    assert "https://huggingface.co/me/tuned" in capsys.readouterr().out
    assert {w.dtype for w in load_file(out / "model.safetensors").values()} == {torch.bfloat16}

    def refuses(self: Hub, name: str, **_: Any) -> None:
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(Hub, "create_repo", refuses)
    with pytest.raises(PrefoptError, match=r"401 Unauthorized; .* is complete: `hf auth login`"):
        module.upload(out, "me/tuned")


@pytest.mark.slow
def test_a_multimodal_adapter_with_relative_paths_is_exported_from_elsewhere(
    pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures.save("gemma3", tmp_path / "m" / "数据")
    (tmp_path / "own.jinja").write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
                                        "{% if add_generation_prompt %}[assistant] {% endif %}")  # fmt: skip
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    given = ["model.path=m/数据", f"data.path={pairs_file}", "output_dir=a=b/run", "peft=lora", "batch.records=8",
             "data.template=own.jinja", "trainer.max_steps=1", "evaluation.texts=0"]  # fmt: skip
    assert main(["train", *given]) == 0
    monkeypatch.chdir(tmp_path / "a=b")
    exported = export(tmp_path / "a=b" / "run", tmp_path / "out").folder
    for folder in (tmp_path / "a=b" / "run" / "final", exported):
        assert load_image_inputs(str(folder)) is not None
    assert (exported / "chat_template.jinja").read_text() == (tmp_path / "own.jinja").read_text()
