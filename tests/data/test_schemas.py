"""One hand-made row per schema, with the record that it must become."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefopt.data import DataConfig, read, schemas
from prefopt.data.schemas import SCHEMAS
from prefopt.errors import UserError
from prefopt.plugin import Data, outside

Q, GOOD, BAD = "How high is it?", "Eight thousand metres.", "No idea."
CALL: dict[str, Any] = {
    "role": "assistant", "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "map", "arguments": {"top": 1}}}],
}  # fmt: skip
USER, SYSTEM = {"role": "user", "content": Q}, {"role": "system", "content": "Be brief."}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def asked(*turns: dict[str, str]) -> tuple[dict[str, str], ...]:
    return turns or (USER,)


PAIR = (Data.PAIRS, (GOOD, BAD))

# name -> (row, prompt, kind, completions, desirable, scores)
CASES: dict[str, tuple[str, dict[str, Any], Any, Data, tuple[Any, ...], bool | None, tuple[float, ...] | None]] = {
    "strings": ("prompt_pair", {"prompt": Q, "chosen": GOOD, "rejected": BAD}, Q, *PAIR, None, None),
    "margin": ("prompt_pair", {"prompt": Q, "chosen": GOOD, "rejected": BAD, "margin": 2}, Q, *PAIR, None, (2.0, 0.0)),
    "system column": (
        "prompt_pair", {"prompt": Q, "chosen": GOOD, "rejected": BAD, "system": "Be brief."},
        asked(SYSTEM, USER), *PAIR, None, None,
    ),
    "messages": (
        "prompt_pair", {"prompt": [SYSTEM, USER], "chosen": [says(GOOD)], "rejected": [says(BAD)]},
        asked(SYSTEM, USER), *PAIR, None, None,
    ),
    "binarized": (
        "prompt_pair",
        {"prompt": Q, "chosen": [USER, says(GOOD)], "rejected": [USER, says(BAD)], "score_chosen": 8.5,
         "score_rejected": 3},
        asked(), *PAIR, None, (8.5, 3.0),
    ),
    "an answer that calls a tool": (
        "prompt_pair",
        {"prompt": [USER], "chosen": [says("Let me look."), CALL],
         "rejected": [says(BAD)]},
        asked(), Data.PAIRS,
        ((says("Let me look."), CALL), BAD), None, None,
    ),
    "implicit messages": (
        "implicit_prompt", {"chosen": [USER, says(GOOD)], "rejected": [USER, says(BAD)]}, asked(), *PAIR, None, None,
    ),
    "implicit text": (
        "implicit_prompt", {"chosen": f"Q: {Q} A: {GOOD}", "rejected": f"Q: {Q} A: {BAD}"},
        f"Q: {Q} A:", Data.PAIRS, (f" {GOOD}", f" {BAD}"), None, None,
    ),
    "transcripts": (
        "hh_rlhf",
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {GOOD}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {BAD}"},
        asked(), *PAIR, None, None,
    ),
    "instruction": (
        "instruction_pair", {"instruction": "Answer.", "input": Q, "chosen": GOOD, "rejected": BAD},
        asked({"role": "user", "content": f"Answer.\n\n{Q}"}), *PAIR, None, None,
    ),
    "query": ("query_pair", {"query": Q, "chosen": GOOD, "rejected": BAD}, Q, *PAIR, None, None),
    "orca": (
        "question_pair", {"system": "Be brief.", "question": Q, "chosen": GOOD, "rejected": BAD},
        asked(SYSTEM, USER), *PAIR, None, None,
    ),
    "orca without system": (
        "question_pair", {"system": "", "question": Q, "chosen": GOOD, "rejected": BAD}, asked(), *PAIR, None, None,
    ),
    "sharegpt": (
        "sharegpt_pair",
        {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": Q}],
         "chosen": {"from": "gpt", "value": GOOD}, "rejected": {"from": "gpt", "value": BAD}},
        asked(SYSTEM, USER), *PAIR, None, None,
    ),
    "sharegpt strings": (
        "sharegpt_pair", {"conversations": [{"from": "human", "value": Q}], "chosen": GOOD, "rejected": BAD},
        asked(), *PAIR, None, None,
    ),
    "ms-swift": (
        "rejected_response",
        {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": GOOD}],
         "rejected_response": BAD},
        asked(), *PAIR, None, None,
    ),
    "ms-swift turn": (
        "rejected_response",
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": Q},
                      {"role": "assistant", "content": GOOD}],
         "rejected_response": [{"role": "assistant", "content": BAD}]},
        asked(SYSTEM, USER), *PAIR, None, None,
    ),
    "ms-swift dialogues": (
        "rejected_response",
        {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": GOOD}],
         "rejected_messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": BAD}]},
        asked(), *PAIR, None, None,
    ),
    "parts": (
        "message_columns",
        {f"{side}_messages": [
            {"role": "user", "content": [{"type": "text", "value": Q}]},
            {"role": "assistant", "content": [{"type": "text", "text": text}], "loss_weight": 1.0},
        ] for side, text in (("chosen", GOOD), ("rejected", BAD))},
        asked(), *PAIR, None, None,
    ),
    "completion label": (
        "prompt_label", {"prompt": Q, "completion": GOOD, "label": True}, Q, Data.UNPAIRED, (GOOD,), True, None,
    ),
    "messages label": (
        "messages_label", {"messages": [USER, says(BAD)], "label": 0}, asked(), Data.UNPAIRED, (BAD,), False, None,
    ),
    "instruction label": (
        "instruction_label", {"instruction": Q, "input": "", "output": BAD, "label": "bad"},
        asked(), Data.UNPAIRED, (BAD,), False, None,
    ),
    "demonstration": (
        "prompt_completion", {"prompt": Q, "completion": GOOD}, Q, Data.DEMONSTRATIONS, (GOOD,), None, None,
    ),
    "dialogue": (
        "dialogue", {"messages": [USER, says(GOOD)]}, asked(), Data.DEMONSTRATIONS, (GOOD,), None, None,
    ),
    "alpaca": (
        "instruction_output", {"instruction": Q, "output": GOOD}, asked(), Data.DEMONSTRATIONS, (GOOD,), None, None,
    ),
    "alpaca with history": (
        "instruction_output", {"instruction": Q, "output": GOOD, "history": [["Hi", "Hello"]]},
        asked({"role": "user", "content": "Hi"}, says("Hello"), USER), Data.DEMONSTRATIONS, (GOOD,), None, None,
    ),
    "tool call": (
        "dialogue",
        {"messages": [USER, {"role": "assistant", "content": None,
                             "tool_calls": [{"name": "map", "arguments": {"top": 1}}]},
                      {"role": "tool", "content": "8848"}, says(GOOD)]},
        asked(USER, CALL,  # type: ignore[dict-item]
              {"role": "tool", "content": "8848"}),
        Data.DEMONSTRATIONS, (GOOD,), None, None,
    ),
    "graded": (
        "graded_solutions",
        {"question": Q, "ground_truth": "8848", "small": {"is_correct": False, "solution": BAD},
         "large": {"is_correct": True, "solution": GOOD}},
        asked(), Data.LISTS, (BAD, GOOD), None, (0.0, 1.0),
    ),
    "ultrafeedback": (
        "rated_completions",
        {"instruction": Q, "completions": [{"response": GOOD, "overall_score": 7.5, "model": "x"},
                                           {"response": BAD, "overall_score": 2, "model": "y"}]},
        asked(), Data.LISTS, (GOOD, BAD), None, (7.5, 2.0),
    ),
    "nectar": (
        "ranked_answers",
        {"prompt": f"\n\nHuman: {Q}\n\nAssistant: ", "answers": [{"answer": GOOD, "rank": 1.0},
                                                                {"answer": BAD, "rank": 2.0}]},
        asked(), Data.LISTS, (GOOD, BAD), None, (-1.0, -2.0),
    ),
    "scores column": (
        "response_columns", {"prompt": Q, "responses": [GOOD, BAD], "scores": [0.5, -1]},
        Q, Data.LISTS, (GOOD, BAD), None, (0.5, -1.0),
    ),
    "shp": (
        "ab_history",
        {"history": Q, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0, "score_A": 3, "score_B": 12},
        asked(), *PAIR, None, (12.0, 3.0),
    ),
    "better_response_id": (
        "judged_pair", {"prompt": Q, "response_0": BAD, "response_1": GOOD, "better_response_id": 1},
        Q, *PAIR, None, (1.0, 0.0),
    ),
    "annotators": (
        "judged_pair",
        {"instruction": Q, "input": "", "response1": GOOD, "response2": BAD, "annotator1": 1, "annotator2": 0,
         "annotator3": 1},
        asked(), *PAIR, None, (2.5 / 3, 0.5 / 3),
    ),
    "tie": (
        "judged_pair", {"question": Q, "answer_a": GOOD, "answer_b": BAD, "winner": "tie"}, Q, *PAIR, None, (0.5, 0.5),
    ),
    "strength": (
        "judged_pair", {"prompt": Q, "response_1": BAD, "response_2": GOOD, "preference_strength": 3},
        Q, *PAIR, None, (3.0, 0.0),
    ),
    "arena": (
        "arena",
        {"conversation_a": [USER, says(BAD)], "conversation_b": [USER, says(GOOD)], "winner": "model_b"},
        asked(), *PAIR, None, (1.0, 0.0),
    ),
    "summaries": (
        "summaries", {"info": {"post": Q}, "summaries": [{"text": BAD}, {"text": GOOD}], "choice": 1},
        asked({"role": "user", "content": f"Summarize:\n\n{Q}"}), *PAIR, None, (1.0, 0.0),
    ),
    "webgpt": (
        "scored_answers",
        {"question": {"full_text": Q}, "answer_0": GOOD, "answer_1": BAD, "score_0": 0.5, "score_1": -0.5},
        asked(), *PAIR, None, (0.5, -0.5),
    ),
    "nested tree": (
        "nested_tree",
        {"message_tree_id": "1", "prompt": {"role": "prompter", "text": Q, "replies": [
            {"role": "assistant", "text": BAD, "rank": 1, "replies": []},
            {"role": "assistant", "text": GOOD, "rank": 0, "replies": []},
            {"role": "assistant", "text": "Unranked.", "rank": None, "replies": []},
        ]}},
        asked(), Data.LISTS, (BAD, GOOD), None, (-1.0, 0.0),
    ),
}  # fmt: skip


CASES |= {
    "the next step": (
        "step_pair", {"prompt": Q, "initial_reason_steps": "Step 1: ", "chosen": GOOD, "rejected": BAD},
        (*asked(), says("Step 1: ")), *PAIR, None, None,
    ),
    "a prompt alone": ("prompts", {"prompt": Q, "category": "mountains"}, Q, Data.PROMPTS, (), None, None),
    "a system text and a prompt": (
        "prompts", {"prompt": Q, "system": "Be brief."}, asked(SYSTEM, USER), Data.PROMPTS, (), None, None,
    ),
    "messages that wait for an answer": (
        "prompts", {"messages": [SYSTEM, USER]}, asked(SYSTEM, USER), Data.PROMPTS, (), None, None,
    ),
    "a question alone": ("prompts", {"question": Q}, asked(), Data.PROMPTS, (), None, None),
}  # fmt: skip


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("case", CASES)
def test_row_becomes_its_record(tmp_path: Path, case: str) -> None:
    schema, row, prompt, kind, completions, desirable, scores = CASES[case]
    found = read(DataConfig(path=write(tmp_path / "rows.jsonl", [row])))
    assert found.schema == schema
    (record,) = found.records
    assert (record.prompt, record.kind, record.completions) == (prompt, kind, completions)
    assert (record.desirable, record.scores, record.source) == (desirable, scores, "rows.jsonl:0")


def test_every_schema_has_a_case() -> None:
    gathered = {"attribute_scores", "tree_messages"}
    assert {schema for schema, *_ in CASES.values()} | gathered == set(SCHEMAS)


def test_rows_of_one_prompt_are_gathered(tmp_path: Path) -> None:
    def row(prompt: str, response: str, score: int) -> dict[str, Any]:
        return {"prompt": prompt, "response": response, "helpfulness": score, "correctness": score, "coherence": 4,
                "complexity": 1, "verbosity": 1}  # fmt: skip

    path = write(tmp_path / "steer.jsonl", [row(Q, GOOD, 4), row(Q, BAD, 1), row("Another?", GOOD, 4)])
    found = read(DataConfig(path=path))
    assert found.schema == "attribute_scores"
    assert [record.scores for record in found.records] == [((4 + 4 + 4) / 3, (1 + 1 + 4) / 3)]
    assert [(r.reason, r.source) for r in found.rejections] == [("too_few_completions", "steer.jsonl:2")]


def test_flat_tree_is_gathered(tmp_path: Path) -> None:
    def row(name: str, parent: str | None, role: str, text: str, rank: int | None) -> dict[str, Any]:
        return {"message_id": name, "parent_id": parent, "message_tree_id": "a", "role": role, "text": text,
                "rank": rank}  # fmt: skip

    rows = [
        row("a", None, "prompter", Q, None),
        row("b", "a", "assistant", GOOD, 0),
        row("c", "a", "assistant", BAD, 1),
        row("d", "b", "prompter", "In feet?", None),
        row("e", "d", "assistant", "29,032.", None),
    ]
    found = read(DataConfig(path=write(tmp_path / "tree.jsonl", rows)))
    assert [(r.prompt, r.completions, r.scores) for r in found.records] == [((USER,), (GOOD, BAD), (0.0, -1.0))]
    assert [r.reason for r in found.rejections] == ["too_few_completions"]  # the single answer under the second turn


def test_fields_are_mapped(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.jsonl", [{"q": Q, "answers": {"best": GOOD}, "worse": BAD}])
    fields = {"prompt": "q", "chosen": "answers.best", "rejected": "worse"}
    (record,) = read(DataConfig(path=path, fields=fields)).records
    assert (record.prompt, record.completions) == (Q, (GOOD, BAD))


def test_a_row_with_an_answer_is_no_prompt_alone(tmp_path: Path) -> None:
    """Its columns must be named; as prompts it is read on request only."""
    path = write(tmp_path / "data.jsonl", [{"prompt": Q, "response_1": GOOD, "response_2": BAD}])
    with pytest.raises(UserError, match=r"fit no known schema"):
        read(DataConfig(path=path))
    found = read(DataConfig(path=path, schema="prompts"))
    assert [record.kind for record in found.records] == [Data.PROMPTS]
    assert found.counts["unread/response_1"] == 1


def test_a_dialogue_with_its_answer_is_no_prompt(tmp_path: Path) -> None:
    rows = [{"messages": [USER]}, {"messages": [USER, says(GOOD)]}]
    found = read(DataConfig(path=write(tmp_path / "data.jsonl", rows), schema="prompts"))
    assert [rejection.reason for rejection in found.rejections] == ["not_a_prompt"]
    assert [record.prompt for record in found.records] == [asked()]


class Point:
    """An entry point of another package."""

    def __init__(self, name: str, loads: Any) -> None:
        self.name, self.dist, self.loads = name, SimpleNamespace(name="their-package"), loads

    def load(self) -> Any:
        return self.loads


@pytest.mark.parametrize(
    ("name", "loads", "said"),
    [
        ("theirs", object(), "schema 'theirs' of package their-package must be a .*Schema, got object"),
        ("theirs", SCHEMAS["prompt_pair"], "schema 'theirs' of package their-package has another name in it"),
        ("prompt_pair", SCHEMAS["prompt_pair"], "their-package registers a schema 'prompt_pair', which prefopt"),
    ],
)
def test_a_schema_of_another_package_that_is_none(
    name: str, loads: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outside, "entry_points", lambda group: [Point(name, loads)])
    schemas._outside.cache_clear()
    try:
        with pytest.raises(UserError, match=said):
            schemas.recognise([{"prompt": "a", "chosen": "b", "rejected": "c"}], "file")
        if name == "theirs":
            with pytest.raises(UserError, match=said):
                schemas.named(name)
    finally:
        schemas._outside.cache_clear()


def test_what_a_schema_of_another_package_raises_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(row: Any) -> list[Any]:
        return [row["smilley"]]

    theirs = replace(SCHEMAS["prompt_pair"], name="theirs", matches=lambda row: "smiley" in row, read=read)
    monkeypatch.setattr(outside, "entry_points", lambda group: [Point("theirs", theirs)])
    schemas._outside.cache_clear()
    try:
        schema = schemas.recognise([{"smiley": "up"}], "file")
        with pytest.raises(UserError, match="schema 'theirs' of package their-package failed on a row with the columns "
                           "'smiley': KeyError: 'smilley'"):  # fmt: skip
            schema.read({"smiley": "up"})
    finally:
        schemas._outside.cache_clear()
