"""Every form of data of today through `data check`, `data show` and ten steps of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.cli import main
from tests.data.tiny import tokenizer
from tests.models import pictures

STEPS, ROWS, INSIDE = 10, 8, "inside completions"
QWEN3 = Path(__file__).parents[1] / "data" / "templates" / "qwen3.jinja"
ADD: dict[str, Any] = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}
RESULT = {"role": "tool", "content": "3", "name": "add", "tool_call_id": "c1"}
Row = dict[str, Any]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def says(text: str, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def call(**arguments: Any) -> Row:
    return says("", tool_calls=[{"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}])


def pair(i: int, **more: Any) -> Row:
    return {"prompt": f"What is {i}+2?", "chosen": f"It is {i + 2}.", "rejected": "I do not know.", **more}


def steer(i: int, **more: Any) -> Row:
    scores = dict.fromkeys(("helpfulness", "correctness", "coherence"), i % 2)
    return {"prompt": f"What is {i // 2}?", "response": f"It is {i}.", **scores, **more}


DIALOGUE = [user("Hi"), says("Hello."), user("And?"), says("Fine.")]
STEPWISE = {"initial_reason_steps": "Step 1: look.\nStep 2:", "chosen": " add.", "rejected": " guess."}
# form -> (loss, row i, options, what `data check` and `data show` print)
FORMS: dict[str, tuple[str, Any, list[str], list[str]]] = {
    "tools": ("dpo", lambda i: pair(i, tools=[ADD]), [], ["add"]),
    "template arguments of a row": (
        "dpo", lambda i: pair(i, chat_template_kwargs={"enable_thinking": bool(i % 2)}), [], ["thinking:"]),
    "template arguments of all rows": (
        "simpo", pair, ["data.chat_template_kwargs={enable_thinking: false}"], ["<think>"]),
    "a prefill": ("dpo", lambda i: pair(i, prompt=[user(f"{i}+2?"), says("Well,")], chosen=" 3.", rejected=" no."), [],
                  ["Well,"]),
    "agents as pairs": (
        "dpo", lambda i: {"prompt": [user(f"{i}+2?")], "tools": [ADD], "rejected": [says("No.")],
                          "chosen": [call(a=i, b=2), RESULT, says("So 3.")]}, [], [INSIDE, "given, masked"]),
    "dialogues that part early": (
        "ipo", lambda i: {"chosen": [user(f"Hi {i}"), says("Hello."), user("And?"), says("Fine.")],
                          "rejected": [user(f"Hi {i}"), says("Go."), user("Why?"), says("So.")]}, [], [INSIDE]),
    "agents with labels": (
        "kto", lambda i: {"prompt": [user(f"{i}+2?")], "tools": [ADD], "label": bool(i % 2),
                          "completion": [call(a=i), RESULT, says("So 3.")]}, [], [INSIDE]),
    "agents as lists": (
        "plackett_luce", lambda i: {"prompt": [user(f"{i}+2?")], "tools": [ADD], "scores": [1, 0],
                                    "completions": [[call(a=i), RESULT, says("So 3.")], "No."]}, [], [INSIDE]),
    "every turn of a dialogue": (
        "sft", lambda i: {"messages": [user(f"Is {i} even?"), *DIALOGUE[1:]]}, ["data.train_on=all_turns"],
        [INSIDE]),
    "open completions": ("dpo", lambda i: pair(i, ended=[i % 2 == 0, False]), [], ["completions open"]),
    "pairs by step": ("dpo", lambda i: {"prompt": f"{i}+2?", **STEPWISE}, [], ["completions open", "Step 1"]),
    "weights": ("orpo", lambda i: pair(i, weight=0.5 + i), [], ["with_weight"]),
    "margins": ("bradley_terry_margin", lambda i: pair(i, margin=i - 1), [], ["with_margin", "margin_against_label"]),
    "probabilities": ("soft_dpo", lambda i: pair(i, probability=0.4 + i / 20), [], ["with_probability"]),
    "ties": ("dpo_rk", lambda i: {"prompt": f"{i}?", "response_a": "one", "response_b": "two",
                                  "winner": ("A", "B", "tie")[i % 3]}, [], ["ties"]),
    "annotators": (
        "dpo_rk", lambda i: {"prompt": f"{i // 2}?", "response_a": "one", "response_b": "two", "worker": i,
                             "winner": ("A", "B", "A", "A")[i % 4]}, [], [f"annotators: {2 * ROWS} verdicts"]),
    "answers in rows of their own": (
        "plackett_luce", lambda i: steer(i, tools=[ADD], ended=i % 2 == 0), [], ["completions open"]),
    "rewards of labels": (
        "pointwise_bce", lambda i: {"prompt": f"{i}?", "completion": "Yes.", "label": bool(i % 2)}, [],
        ["label_balance"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    made = tokenizer(QWEN3.read_text(), eos="<|im_end|>")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings: Any = {"num_key_value_heads": 2, "eos_token_id": made.eos_token_id, "bos_token_id": None,
                     "pad_token_id": made.pad_token_id, **sizes}  # fmt: skip
    LlamaForCausalLM(LlamaConfig(vocab_size=len(made), **settings)).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def checked_shown_and_trained(
    loss: str, model: Path, data: Path, out: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> str:
    """What `data check` and `data show` print, with the bars between tokens left out; training is part of the test."""
    shape = ["data.ties=keep", *options]
    assert main(["data", "check", str(data), "--tokenizer", str(model), *shape, "--threshold", "kept=0"]) in (0, 3)
    assert main(["data", "show", str(data), "--row", "0", "--tokenizer", str(model), *shape]) == 0
    said = capsys.readouterr().out.replace("│", "")
    given = [f"loss={loss}", f"model.path={model}", f"data.path={data}", f"output_dir={out}", "evaluation.texts=0",
             "data.eval_records=0", "batch.records=4", "evaluation.kl_prompts=0", f"trainer.max_steps={STEPS}",
             *options]  # fmt: skip
    assert main(["train", *given]) == 0
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    assert len(losses) == STEPS
    assert all(abs(value) < float("inf") for value in losses)
    assert json.loads((out / "manifest.json").read_text())["data"]["counts"]["train"] >= ROWS - 3
    return said


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_check_show_and_ten_steps(form: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loss, row, options, printed = FORMS[form]
    gathered = form in ("annotators", "answers in rows of their own")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row(i)) + "\n" for i in range(ROWS * (1 + gathered))))
    said = checked_shown_and_trained(loss, model, data, tmp_path / "run", options, capsys)
    assert [text for text in printed if text not in said] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "family", "column"),
    [("dpo", "qwen2_vl", "images"), ("orpo", "gemma3", "image"), ("simpo", "llava", "images")],
)
def test_images(loss: str, family: str, column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Path(pictures.save(family, tmp_path / "model"))
    data = pictures.write(tmp_path, ROWS, column=column)
    said = checked_shown_and_trained(loss, model, data, tmp_path / "run", [], capsys)
    assert [text for text in ("with_images", "images:", "image 16x16") if text not in said] == []
