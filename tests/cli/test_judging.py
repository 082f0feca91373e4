"""`prefopt report`, `eval`, `sample` and `chat` on a small tuned model."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.cli import main
from prefopt.errors import UserError
from prefopt.evaluate.conversation import Conversation
from prefopt.evaluate.texts import Sampling
from prefopt.runs.run_folder import open_model
from tests.cli.conftest import Run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tuned(model_folder: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(model_folder, pairs_file, tmp_path_factory.mktemp("tuned") / "run")
    assert run("trainer.learning_rate=1e-2", "trainer.max_steps=8") == 0
    return run.out


def evaluated(capsys: Capture, *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["eval", *argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_eval_of_a_run_gives_what_the_run_found(tuned: Path, model_folder: Path, capsys: Capture) -> None:
    found = evaluated(capsys, str(tuned))
    rows = [json.loads(line) for line in (tuned / "heldout.jsonl").read_text().splitlines()]
    change = np.array([row["chosen"]["after"] - row["chosen"]["before"] for row in rows])
    assert found["data"]["records"] == 8
    assert found["data"]["held_out"]
    assert found["against"] == str(model_folder)
    assert found["differences"]["logps/chosen"]["value"] == pytest.approx(change.mean(), abs=1e-4)
    assert found["differences"]["logps/chosen"]["se"] == pytest.approx(change.std(ddof=1) / 8**0.5, abs=1e-4)
    summary = json.loads((tuned / "summary.json").read_text())
    assert found["figures"]["accuracies/logps"]["value"] == summary["after"]["accuracies/logps"]
    assert found["texts"]["kl"]["value"] == pytest.approx(summary["after"]["kl"], abs=1e-4)


def test_eval_of_any_model_against_any_other(
    tuned: Path, model_folder: Path, pairs_file: Path, capsys: Capture
) -> None:
    """The other way round every difference changes its sign; nothing is held out, and that is said."""
    data = (f"data.path={pairs_file}", "evaluation.max_new_tokens=4", "evaluation.kl_prompts=4")
    there = evaluated(capsys, str(tuned), f"against={model_folder}", *data)
    back = evaluated(capsys, str(model_folder), f"against={tuned}", *data)
    assert there["data"] == {"path": str(pairs_file), "records": 40, "held_out": False}
    for name in ("margins/logps", "logps_mean/rejected", "accuracies/logps"):
        assert there["differences"][name]["value"] == pytest.approx(-back["differences"][name]["value"], abs=1e-9)
    assert there["figures"] == back["against_figures"]


def test_eval_shows_a_table(tuned: Path, model_folder: Path, capsys: Capture) -> None:
    assert main(["eval", str(tuned), f"against={tuned}/final"]) == 0
    out = capsys.readouterr().out
    assert "8 held-out records" in out
    assert "Log-prob of chosen, nats" in out
    assert "tie" in out  # with itself
    assert "KL to it: 0.00 ± 0.00" in out or "KL to it: 0.000 ± 0.000" in out


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_eval_of_labels_and_of_an_adapter(model_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """A fresh adapter changes nothing: its model ties with the one below it."""
    peft = pytest.importorskip("peft")
    file = tmp_path / "labels.jsonl"
    rows = [{"prompt": f"Is {i} even?", "completion": f"{i % 2 == 0}.", "label": i % 3 == 0} for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, _ = open_model(str(model_folder))
    model.config._name_or_path = str(model_folder)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(tmp_path / "adapter")
    found = evaluated(
        capsys, str(tmp_path / "adapter"), f"against={model_folder}", f"data.path={file}", "evaluation.max_new_tokens=4"
    )
    assert found["differences"]["logps/chosen"]["value"] == pytest.approx(0, abs=1e-5)
    assert found["figures"]["logps/chosen"]["count"] == 4
    assert found["figures"]["logps/rejected"]["count"] == 8
    assert "margins/logps" not in found["figures"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["eval", "{model}"], "on which data?"),
        (["eval", "{model}", "data.path=/no/such.jsonl"], "no such file"),
        (["eval", "{model}", "nonsense"], "is not a setting"),
        (["eval", "/no/such/model", "data.path={pairs}"], "cannot load a model"),
        (["sample", "data.path={pairs}"], "which models?"),
        (["report", "{model}"], "is not the folder of a run"),
        (["chat", "{model}", "--template", "nope"], "no template 'nope'"),
        (["chat", "{model}", "--system", "be kind"], "has no chat template"),
    ],
)
def test_refused_in_one_line(
    model_folder: Path, pairs_file: Path, capsys: Capture, argv: list[str], words: str
) -> None:
    assert main([a.format(model=model_folder, pairs=pairs_file) for a in argv]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_report_is_made_again(tuned: Path, capsys: Capture) -> None:
    first = (tuned / "report.html").read_text()
    (tuned / "report.html").unlink()
    assert main(["report", str(tuned)]) == 0
    assert f"the page: {tuned}/report.html" in capsys.readouterr().out
    assert (tuned / "report.html").read_text() == first
    assert main(["report", str(tuned), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["grew"]["count"] == 8


def test_sample_puts_a_run_beside_where_it_started(tuned: Path, model_folder: Path, capsys: Capture) -> None:
    assert main(["sample", str(tuned), "--count", "2", "--max-new-tokens", "4", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kept = [json.loads(line) for line in (tuned / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [k["prompt"] for k in kept[:2]]
    for row, k in zip(rows, kept, strict=False):
        assert row["texts"] == [
            {"model": str(model_folder), "text": k["before"]}, {"model": str(tuned), "text": k["after"]},
        ]  # fmt: skip


def test_sample_of_given_prompts(tuned: Path, model_folder: Path, capsys: Capture) -> None:
    models = [str(model_folder), str(tuned), f"{tuned}/final"]
    assert main(["sample", *models, "--prompt", "The quick", "--prompt", "Is 3", "--max-new-tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert out.index("The quick") < out.index("Is 3")
    assert all(out.count(f"{name}: ") == 2 for name in models)


def test_chat_answers_what_is_piped_in(tuned: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def ask(self: Conversation, text: str, tell: Any) -> str:
        heard.append(text)
        tell("an \x1b[31manswer")
        return ""

    monkeypatch.setattr(Conversation, "ask", ask)
    monkeypatch.setattr(sys, "stdin", io.StringIO("first\n\n/reset\n/what\nsecond\n/quit\nthird\n"))
    assert main(["chat", str(tuned)]) == 0
    out = capsys.readouterr().out
    assert heard == ["first", "second"]
    assert "\x1b" not in out
    assert out.splitlines()[0].endswith("[31manswer")
    assert "(new conversation)" in out
    assert "/quit or Ctrl-D ends the chat" in out  # for an unknown command


TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def talk(model_folder: Path) -> Conversation:
    model, tokenizer = open_model(str(model_folder))
    tokenizer.chat_template = TURNS
    return Conversation(model, tokenizer, Sampling(max_new_tokens=5, temperature=1.0), system="Be kind.")


def test_turns_are_remembered_until_reset(talk: Conversation) -> None:
    pieces: list[str] = []
    answer = talk.ask("One?", pieces.append)
    assert "".join(pieces) == answer
    talk.ask("Two?")
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * 2
    seen = talk.tokenizer.decode(talk._within_context([*talk.turns, {"role": "user", "content": "Three?"}])[0])
    assert all(words in seen for words in ("Be kind.", "One?", "Two?", "Three?"))
    talk.reset()
    assert talk.ask("One?") == answer  # the same draws again
    assert len(talk.turns) == 2


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(talk: Conversation) -> None:
    talk.model.config.max_position_embeddings = 160
    for i in range(4):
        talk.ask(f"Question number {i}, said at some length.")
    assert talk.forgotten > 0
    assert talk.forgotten % 2 == 0
    talk.model.config.max_position_embeddings = 20
    with pytest.raises(UserError, match="shorten the text"):
        talk.ask("And now something that does not fit into twenty tokens at all.")


def test_without_a_template_a_text_is_gone_on_with(model_folder: Path) -> None:
    talk = Conversation(*open_model(str(model_folder)), Sampling(max_new_tokens=4))
    prompt, _ = talk._within_context([{"role": "user", "content": "The quick"}])
    assert talk.tokenizer.decode(prompt) == "The quick"
    talk.ask("The quick")
    assert talk.turns == []
