"""A model trained with arguments of its chat template is asked with them by every verb, wherever it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from prefopt.cli import main
from prefopt.cli.loading import configuration, data_of, format_of, records_of
from prefopt.data import DataConfig, prepare
from prefopt.data.jinja_source import with_defaults
from prefopt.data.tokenize import Encoder
from prefopt.evaluate.conversation import Conversation
from prefopt.rewards.model import GivenPrompt, ModelReward, Writer
from prefopt.rewards.reward import Answer
from prefopt.runs.run_folder import RunFolder
from tests.cli.conftest import tmp_run
from tests.data.test_template_arguments import TEMPLATE
from tests.data.tiny import tokenizer

OFF = "data.chat_template_kwargs={enable_thinking: false}"
ASKED = "<|im_start|>user\nIs 3 even?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
TURN = {"role": "user", "content": "Is 3 even?"}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def thinker(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("thinker") / "model"
    shutil.copytree(model_folder, folder)
    tokenizer(TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def unthinking(thinker: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose prompts have thinking switched off, by a template in a file."""
    run = tmp_run(thinker, pairs_file, tmp_path_factory)
    file = tmp_path_factory.mktemp("template") / "own.jinja"
    file.write_text(TEMPLATE)
    assert run(OFF, f"data.template={file}", "trainer.max_steps=2") == 0
    return run.out


def rendered(folder: Path, **arguments: Any) -> str:
    made = AutoTokenizer.from_pretrained(folder)
    text = made.apply_chat_template([TURN], tokenize=False, add_generation_prompt=True, **arguments)
    assert isinstance(text, str)
    return text


@pytest.mark.slow
def test_the_tuned_model_and_its_export_carry_the_template_of_training(
    unthinking: Path, thinker: Path, tmp_path: Path
) -> None:
    assert main(["export", str(unthinking), "--to", str(tmp_path / "made")]) == 0
    for folder in (unthinking / "final", tmp_path / "made"):
        assert rendered(folder) == ASKED
        assert rendered(folder, enable_thinking=True) == ASKED.removesuffix("<think>\n\n</think>\n\n")
    assert rendered(thinker) != ASKED


def test_chat_asks_as_in_training(unthinking: Path, thinker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def ask(self: Conversation, text: str, tell: Any, images: Any) -> str:
        prompt, _ = self._within_context([{"role": "user", "content": text}])
        heard.append(self.tokenizer.decode(prompt))
        return ""

    monkeypatch.setattr(Conversation, "ask", ask)
    monkeypatch.setattr("prefopt.cli.chat._lines", lambda: iter(["Is 3 even?"]))
    for arguments in ([str(unthinking)], [str(unthinking / "final")], [str(thinker), OFF]):
        assert main(["chat", *arguments]) == 0
    assert heard == [ASKED] * 3
    assert main(["chat", str(unthinking), OFF.replace("false", "true")]) == 0
    assert "<think>" not in heard[-1]


@pytest.mark.slow
def test_sample_writes_prompts_as_in_training(
    unthinking: Path, thinker: Path, pairs_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    to = str(tmp_path / "samples.json")
    sampled = ["num_generations=2", "--max-new-tokens", "2", "--to", to]
    for more in (["--prompt", "Is 3 even?"], [f"data.path={pairs_file}"], []):
        assert main(["sample", str(unthinking), *sampled, *more]) == 0
        rows = json.loads(Path(to).read_text())
        assert all(row["prompt"].endswith(ASKED[-20:]) for row in rows)
        assert all(row["sampling"]["chat_template_kwargs"] == {"enable_thinking": False} for row in rows)
    models = [str(unthinking), str(thinker)]
    assert main(["sample", *models, "--prompt", "Is 3 even?", "--max-new-tokens", "2", "--to", to]) == 0
    assert main(["sample", str(unthinking), "--prompt", "x", "data.chat_template_kwargs={loud: true}"]) == 2
    assert "does not read" in capsys.readouterr().err


def test_pairs_of_samples_are_rendered_as_the_samples_were(unthinking: Path, tmp_path: Path) -> None:
    to, rows = tmp_path / "samples.json", tmp_path / "pairs.jsonl"
    (tmp_path / "size.py").write_text("def size(prompts, texts):\n    return [float(len(t)) for t in texts]\n")
    assert main(["sample", str(unthinking), "num_generations=8", "--prompt", "Is 3 even?", "--max-new-tokens", "60",
                 "--to", str(to)]) == 0  # fmt: skip
    assert main(["pairs", str(to), f"reward={tmp_path}/size.py:size", "label=soft", "--to", str(rows)]) == 0
    made = tokenizer(TEMPLATE)
    record = prepare(DataConfig(path=str(rows), eval_records=0, ties="keep"), made, None).train[0]
    assert made.decode(record.prompt) == ASKED


def test_other_data_are_read_as_the_model_learnt(unthinking: Path, pairs_file: Path) -> None:
    made = AutoTokenizer.from_pretrained(unthinking / "final")
    for overrides in ([], [f"data.path={pairs_file}"]):
        _, records, _ = records_of(str(unthinking), overrides, made)
        assert made.decode(records[0].prompt).endswith(ASKED[-20:])
    data = data_of(str(unthinking), [f"data.path={pairs_file}", "data.chat_template_kwargs={enable_thinking: true}"])
    assert data.chat_template_kwargs == {"enable_thinking": True}
    assert format_of(str(unthinking)).chat_template_kwargs == {"enable_thinking": False}
    assert configuration(str(unthinking), []).data.chat_template_kwargs == {"enable_thinking": False}
    own = RunFolder.open(unthinking).run_config(f"data.path={pairs_file}")
    assert own.data.chat_template_kwargs == {"enable_thinking": False}


def test_a_later_stage_inherits_the_defaults(unthinking: Path, pairs_file: Path) -> None:
    made = AutoTokenizer.from_pretrained(unthinking / "final")
    assert Encoder(made, DataConfig(path="x")).prompt("Is 3 even?") == made(ASKED)["input_ids"]
    on = DataConfig(path="x", chat_template_kwargs={"enable_thinking": True})
    assert made.decode(Encoder(made, on).prompt("Is 3 even?")) == ASKED.removesuffix("<think>\n\n</think>\n\n")


def test_defaults_are_those_of_any_json_value() -> None:
    values = {"a": "ü\n\"'%} {{ x }} \\", "b": [1, None, True, 2.5], "c": {"k": False}}
    source = "\n{%- macro m() %}{{ a }}|{{ b }}|{{ c.k }}{% endmacro %}{{ m() }}"
    made = tokenizer(with_defaults(source, values))
    assert made.apply_chat_template([TURN], tokenize=False) == f"{values['a']}|[1, None, True, 2.5]|False"
    assert made.apply_chat_template([TURN], tokenize=False, a="x", b=1) == "x|1|False"
    assert with_defaults(with_defaults(source, values), values) == with_defaults(source, values)


def test_a_reward_model_reads_prompts_as_it_learnt_them(
    thinker: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_run(thinker, pairs_file, tmp_path_factory)
    assert run("loss=bradley_terry", OFF, "trainer.max_steps=1") == 0
    made = tokenizer(TEMPLATE)
    on = {"enable_thinking": True}
    texts = {}
    for name, arguments, own in (("same", {"enable_thinking": False}, {}), ("other", {}, {}), ("row", {}, on)):
        data = DataConfig(path="x", chat_template_kwargs=arguments)
        prompt = tuple(Encoder(made, data).prompt("Is 3 even?", own))
        given = {prompt: GivenPrompt(text="Is 3 even?", arguments={**own, "loud": True} if own else {})}
        reward = ModelReward(
            path=str(run.out / "final"),
            writer=lambda d=data, g=given: Writer(tokenizer=made, data=d, prompts=lambda: g),
        )
        assert reward.reads_tokens is (name == "same")
        answer = Answer(prompt=prompt, completion=(40, made.eos_token_id), prompt_text="", text="", ended=True)
        texts[name] = made.decode(reward._tokens(answer)[0])
    assert texts == {"same": ASKED, "other": ASKED, "row": ASKED.removesuffix("<think>\n\n</think>\n\n")}
