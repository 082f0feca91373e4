"""Which turns of a file's rows are trained, and every form of rows through the doctor, `show` and training."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.common.escaping_console import Console
from prefopt.data import DataConfig, prepare, tokenize
from prefopt.data.doctor import examine
from prefopt.data.reader import read
from prefopt.data.record import Message
from prefopt.data.show import show
from prefopt.data.views import to_view
from prefopt.losses import registry
from prefopt.plugin import Data
from prefopt.train import BatchConfig, train
from tests.data.test_spans import ADD, CALL, HI, RESULT, made, parts, says, text, trained
from tests.train import tiny


def rows(folder: Path, *found: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


FOUR: list[Any] = [HI, says("Hello."), Message(role="user", content="And?"), says("Fine.")]


@pytest.mark.parametrize(
    ("row", "train_on", "expected"),
    [
        ({"messages": FOUR}, None, ["Fine.<|im_end|>"]),
        ({"messages": FOUR}, "last_turn", ["Fine.<|im_end|>"]),
        ({"messages": FOUR}, "all_turns", ["Hello.<|im_end|>", "Fine.<|im_end|>"]),
        ({"messages": [FOUR[0], {**FOUR[1], "weight": 0}, *FOUR[2:]]}, "all_turns", ["Fine.<|im_end|>"]),
        ({"messages": FOUR, "label": True}, "all_turns", ["Hello.<|im_end|>", "Fine.<|im_end|>"]),
        ({"prompt": "Hi", "completion": FOUR[1:]}, None, ["Hello.<|im_end|>", "Fine.<|im_end|>"]),
        ({"prompt": "Hi", "completion": FOUR[1:]}, "last_turn", ["Fine.<|im_end|>"]),
        ({"chosen": FOUR, "rejected": [HI, says("Go.")]}, None, ["Hello.<|im_end|>", "Fine.<|im_end|>"]),
        ({"chosen": FOUR, "rejected": [HI, says("Go."), *FOUR[2:]]}, "last_turn", ["Fine.<|im_end|>"]),
        ({"prompt": "Hi", "completions": [FOUR[1:], "Go."], "scores": [1, 0]}, None,
         ["Hello.<|im_end|>", "Fine.<|im_end|>"]),
        ({"conversation_a": FOUR, "conversation_b": [HI, says("Go."), *FOUR[2:]], "winner": "model_a"}, None,
         ["Hello.<|im_end|>", "Fine.<|im_end|>"]),
    ],
)  # fmt: skip
def test_turns_that_are_trained(tmp_path: Path, row: dict[str, Any], train_on: str | None,
                                expected: list[str]) -> None:  # fmt: skip
    filler = [{**row, "label": not row["label"]}] if "label" in row else []
    ready = prepare(DataConfig(path=rows(tmp_path, row, *filler), train_on=train_on), made("chatml_tools"), None)
    assert trained(parts(made("chatml_tools"), ready.train[0].completions[0])) == expected
    assert not ready.rejections


@pytest.mark.parametrize(
    ("row", "options", "ended"),
    [
        ({"ended": False}, {}, (False, False)),
        ({"ended": [True, False]}, {}, (True, False)),
        ({"ended": "true"}, {"ended": False}, (True, True)),
        ({}, {"ended": False}, (False, False)),
        ({"ended": " "}, {"ended": False}, (False, False)),
        ({"ended": ""}, {}, (True, True)),
        ({"initial_reason_steps": "Step 1: so.\n"}, {}, (False, False)),
        ({"initial_reason_steps": "Step 1: so.\n", "ended": [False, True]}, {}, (False, True)),
    ],
)
def test_open_completions_by_column_and_option(tmp_path: Path, row: dict[str, Any], options: dict[str, Any],
                                               ended: tuple[bool, bool]) -> None:  # fmt: skip
    config = DataConfig(path=rows(tmp_path, {"prompt": "Hi", "chosen": "Step 2.", "rejected": "No.", **row}), **options)
    tk = made("chatml_tools")
    (record,) = prepare(config, tk, Data.PAIRS).train
    expected = [f"{said}{'<|im_end|>' * end}" for said, end in zip(("Step 2.", "No."), ended, strict=True)]
    assert [text(tk, ids) for ids in record.completions] == expected
    assert text(tk, record.prompt).endswith(row.get("initial_reason_steps", "assistant\n"))


TRAJECTORY: list[Any] = [CALL, RESULT, says("Three.")]
FORMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "a trajectory of an agent": ("sft", {"prompt": "Add.", "completion": TRAJECTORY, "tools": [ADD]}, {}),
    "pairs of trajectories": ("dpo", {"prompt": "Add.", "chosen": TRAJECTORY, "rejected": "Four.", "tools": [ADD]}, {}),
    "dialogues that part early": ("ipo", {"chosen": FOUR, "rejected": [HI, says("Go."), *FOUR[2:]]}, {}),
    "lists of trajectories": (
        "plackett_luce", {"prompt": "Add.", "completions": [TRAJECTORY, "Four.", "Five."], "scores": [2, 1, 0]}, {},
    ),
    "labels of every turn": ("kto", {"messages": FOUR, "label": True}, {"train_on": "all_turns"}),
    "every turn of a dialogue": ("sft", {"messages": FOUR}, {"train_on": "all_turns"}),
    "the next step": (
        "dpo", {"prompt": "Add.", "initial_reason_steps": "Step 1: so.\n", "chosen": "Step 2.", "rejected": "No."}, {},
    ),
    "cut texts": ("simpo", {"prompt": "Hi", "chosen": "Step", "rejected": "No"}, {"ended": False}),
    "thinking off": ("dpo", {"prompt": "Hi", "chosen": "Yes.", "rejected": "No."},
                     {"chat_template_kwargs": {"enable_thinking": False}}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_checked_shown_and_trained(tmp_path: Path, form: str) -> None:
    name, row, options = FORMS[form]
    tk, loss = made("qwen3"), registry.load(name)
    # one row for each question, so that some completions belong to other prompts
    every = [json.loads(json.dumps(row).replace("Hi", f"Hi {i}").replace("Add.", f"Add {i}.")) for i in range(8)]
    every = [{**one, "label": i % 2 == 0} if "label" in one else one for i, one in enumerate(every)]
    config = DataConfig(path=rows(tmp_path, *every), **options)
    report = examine(config, tokenizer=tk)
    assert (report.kept, report.rejections) == (8, [])
    shown = StringIO()
    view = to_view(read(config).records, None, train_on=config.train_on)
    show(view.records[0], tk, config, Console(file=shown, width=200))
    assert "tokens" in shown.getvalue()
    ready = prepare(config, tk, loss.needs.data)
    policy = tiny.model(vocab=len(tk), max_position_embeddings=512)
    result = train(policy, loss, ready.train, output_dir=tmp_path / "run", max_steps=10, learning_rate=1e-3,
                   batch=BatchConfig(records=4, max_tokens=2048), logging_steps=1)  # fmt: skip
    losses = [entry["loss"] for entry in result.trainer.state.log_history if "loss" in entry]
    assert len(losses) == 10
    assert np.isfinite(losses).all()


def test_the_doctor_says_what_is_trained_and_what_thinking_changes(tmp_path: Path) -> None:
    tk = made("qwen3")
    path = rows(tmp_path, {"prompt": "Add.", "chosen": TRAJECTORY, "rejected": "Four.", "tools": [ADD]},
                {"prompt": "Hi", "chosen": "Step 2.", "rejected": "No.", "ended": [True, False]})  # fmt: skip
    config = DataConfig(path=path)
    table = tokenize(read(config).records, tk, config).records
    lengths = [len(ids) for record in table for ids in record.completions]
    given = [sum(int((ids < 0).sum()) for ids in record.completions) for record in table]
    assert given[1] == 0 < given[0]
    *_, tokens, thinking = examine(config, tokenizer=tk).account
    assert tokens == (
        f"tokens: {sum(lengths) - sum(given)} trained; context: {sum(len(r.prompt) for r in table)} of prompts, "
        f"{given[0]} inside completions of 1 records; 1 completions open (they do not end their turns)"
    )
    assert thinking == (
        "thinking: 2 of 2 rows change between enable_thinking: true and false (prompts 1, completions 1, rejected "
        "without 1); set it with data.chat_template_kwargs"
    )
    (line,) = examine(config, tokenizer=made("chatml_tools")).account[-1:]
    assert line.startswith("tokens: ")
