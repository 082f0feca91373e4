"""The commands of help texts and of `text` blocks run on a tiny model; `bash` blocks run as they are (test_site.py).

One rule for all: a model, run or data set becomes the small one that has its name here, a training or comparison is
made short (`SMALL`), and what it writes goes to a folder of its own. `NOT_RUN` names the others, each with its reason;
those are composed (test_commands.py).
"""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from prefopt.cli import main
from tests.cli.conftest import Run
from tests.docs.test_commands import PAGES, ours
from tests.docs.test_site import blocks, commands

SAMPLED = {"evaluation.max_new_tokens": 2, "evaluation.kl_prompts": 2}
SMALL = {
    "train": {"trainer.max_steps": 1, "batch.records": 4, "data.eval_records": 8, "data.max_records": 24,
              "evaluation.texts": 1, **SAMPLED},
    "compare": {"trainer.max_steps": 1, "batch.records": 4, "data.eval_records": 8, "data.max_records": 24,
                "budget.trials": 1, "seeds": 1, "measure.prompts": 2, "measure.texts": 1, "workers": 0, **SAMPLED},
    "plan": {"data.eval_records": 8, "batch.records": 4},
    "eval": SAMPLED,
}  # fmt: skip
INPUT = {"model.path": "model", "data": "auto", "data.path": "pairs.jsonl"}  # of trainings, plans and comparisons
NAMES = {
    "MODEL_FOLDER": "model",
    "OTHER": "model",
    "against=OTHER": "against=model",
    "ID": "0",
    "REWARD": "rewards.py:short",
    "FILE.py:FUNCTION": "rewards.py:short",
    "brevity": "rewards.py:short",
    "world": "rewards.py:short",
    "runs/rm": "runs/reward",
    "rewardbench=pairs.jsonl": "rewardbench=bench.jsonl",
}
FILES = {"pairs": "samples.json", "import": "dpo_config.json"}  # what FILE is for a verb
RUNS = ("RUN", "runs/mine", "runs/a", "runs/b", "runs/c", "runs/polite")
NOT_RUN = {
    r"losses docs": "writes the catalogue into the checkout; tests/report/test_catalogue.py holds it",
    r"losses check": "takes long; tests/testing and tests/cli/test_losses.py run it",
    r"referee ": "installs and runs other trainers; tests/losses/test_referee.py",
    r"replay ": "of a file that a failed run leaves; tests/cli/test_replay.py",
    r".*launcher=submitit": "needs SLURM",
    r"train -m sweep=optuna": "needs an extra; tests/cli/test_multirun.py",
    r"train experiment=(FILE|ours)": "a file that `prefopt import` writes; docs/coming_from.md runs it",
}


def unlike_bash() -> list[list[str]]:
    """The commands that no bash block runs."""
    run = {line for page in PAGES for language, body in blocks(page) if language == "bash" for line in commands(body)}
    shown = [words for _, words in ours() if words[0] not in ("VERB", "--help", "--version")]
    there = {shlex.join(shlex.split(line, comments=True)[1:]) for line in run}
    return [words for words in shown if shlex.join(words) not in there]


def why_not(words: list[str]) -> str:
    """The reason why a command is not run, or nothing."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, shlex.join(words))), "")


def made_small() -> list[list[str]]:
    """Those that run, made small, each once."""
    return [shlex.split(line) for line in dict.fromkeys(shlex.join(small(w)) for w in unlike_bash() if not why_not(w))]


def small(words: list[str]) -> list[str]:
    """The command on the small model and data, with the sizes of `SMALL`."""
    verb, *given = words
    given = given[: given.index(">")] if ">" in given else given
    given = [
        NAMES.get(word, word)
        for word in given
        if verb != "train" or "=" in word or word.startswith("-") or word == "job"
    ]
    if verb in FILES and given[0] == "pairs.jsonl":
        given[0] = FILES[verb]
    if verb == "compare":  # two rows
        given = [re.sub(r"^losses=\[(\S+?,\S+?),.*\]$", r"losses=[\1]", word) for word in given]
    given = [re.sub(r"^(reward=)(.*)", lambda found: found[1] + NAMES.get(found[2], found[2]), word) for word in given]
    if verb == "sample" and "--max-new-tokens" not in given:
        given += ["--max-new-tokens", "4"]
    if verb not in SMALL or any(word.startswith("rewardbench=") for word in given):
        return [verb, *given]
    own = {**SMALL[verb], **(INPUT if verb != "eval" else {})}
    if any(word.startswith(("source=", "loss=rloo")) or "@rollouts" in word or "rloo" in word for word in given):
        own["rollout.max_new_tokens"] = 2
        if not any(word.startswith("reward=") for word in given):  # the world's own
            own["reward"] = "rewards.py:short"
    if verb in ("train", "compare"):
        own["output_dir"] = "out"
    flags = ["--cfg", "job"] if "--cfg" in given else []
    dropped = {*own, *(key.partition(".")[0] for key in own if key in INPUT)}
    kept = [word for word in given if word.partition("=")[0] not in dropped and word not in flags]
    if "-m" in kept:
        own["hydra.sweep.dir"] = own.pop("output_dir")
    return [verb, *kept, *flags, *(f"{key}={value}" for key, value in own.items())]


@pytest.fixture(scope="session")
def reward_run(model_folder: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(model_folder, pairs_file, tmp_path_factory.mktemp("reward") / "out")
    assert run("loss=bradley_terry", "trainer.max_steps=1") == 0
    return run.out


@pytest.fixture(scope="session")
def samples(model_folder: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "samples.json"
    how = ["num_generations=4", "--count", "8", "--max-new-tokens", "4", "--to", str(path)]
    assert main(["sample", str(model_folder), f"data.path={pairs_file}", *how]) == 0
    return path


@pytest.fixture
def folder(
    model_folder: Path,
    pairs_file: Path,
    finished: Path,
    reward_run: Path,
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with all that the commands name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    links = {"model": model_folder, "runs/reward": reward_run, **dict.fromkeys(RUNS, finished)}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    for name in ("pairs.jsonl", "other.jsonl"):
        (tmp_path / name).write_bytes(pairs_file.read_bytes())
    (tmp_path / "samples.json").write_bytes(samples.read_bytes())
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    thumbs = [{"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2 == 0} for i, row in enumerate(rows)]
    bench = [row | {"id": i, "subset": "alpacaeval-easy"} for i, row in enumerate(rows)]
    for name, made in (("thumbs.jsonl", thumbs), ("bench.jsonl", bench)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in made))
    pairs = [{"instruction": row["prompt"], "input": "", "output": row["chosen"], "chosen": row["chosen"],
              "rejected": row["rejected"]} for row in rows]  # fmt: skip
    (tmp_path / "instruction-data-with-preference.json").write_text(json.dumps(pairs))
    (tmp_path / "rewards.py").write_text(
        "def short(prompts, texts):\n    return [-float(len(text)) for text in texts]\n"
    )
    trl = {"beta": 0.2, "loss_type": "sigmoid", "precompute_ref_log_probs": True}
    axolotl = {"base_model": "m", "rl": "dpo", "datasets": [{"path": "pairs.jsonl"}]}
    factory = {"stage": "dpo", "model_name_or_path": "m", "dataset": "d", "finetuning_type": "lora", "do_train": True}
    for name, theirs in (("dpo_config.json", trl), ("axolotl_dpo.yaml", axolotl), ("llama3_lora_dpo.yaml", factory)):
        (tmp_path / name).write_text(yaml.safe_dump(theirs) if name.endswith("yaml") else json.dumps(theirs))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("words", made_small(), ids=lambda words: shlex.join(words)[:80])
def test_a_command_runs(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Is 3 even?\n"))
    assert main(words) in ((0, 3) if words[0] == "data" else (0,))  # 3: findings about forty rows


def test_a_command_runs_or_has_a_reason() -> None:
    lines = [shlex.join(words) for words in unlike_bash()]
    assert [pattern for pattern in NOT_RUN if not any(re.match(pattern, line) for line in lines)] == []
    assert len(made_small()) > 40
