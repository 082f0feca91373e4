"""The doctor: what it finds in data whose faults are known, and what the command prints and returns."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.cli import main
from prefopt.data import DataConfig
from prefopt.data.doctor import MEANINGS, Report, examine
from prefopt.data.jinja_source import NAMED
from tests.data.test_shared_files import FILES
from tests.data.tiny import tokenizer

ANIMALS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "kiwi", "lynx"]


def words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choice(ANIMALS) for _ in range(count))


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs without any fault: both sides are drawn the same way."""
    draw = random.Random(seed)
    return [
        {
            "prompt": f"{words(draw, 40)} {seed}.{i}?",
            "chosen": words(draw, 9) + " a.",
            "rejected": words(draw, 9) + " b.",
        }
        for i in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def check(path: Path, rows: list[dict[str, Any]], **settings: Any) -> Report:
    return examine(DataConfig(path=str(write(path / "a.jsonl", rows)), **settings))


def figures(report: Report) -> dict[str, float]:
    return {name: finding.figure for name, finding in report.findings.items()}


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path) -> None:
    rows = [{**row, "chosen": row["chosen"][:-3], "rejected": row["rejected"][:-3]} for row in pairs(1200)]
    report = check(tmp_path, rows)
    assert [name for name, finding in report.findings.items() if finding.noticed or not finding.ok] == []
    assert abs(figures(report)["word_rule"] - 0.5) < 4 * 0.5 / 240**0.5  # four standard errors of a fair coin


def test_repetitions(tmp_path: Path) -> None:
    rows = pairs(30)
    same_prompt = {**rows[4], "chosen": "Something else entirely."}
    nearly = {**rows[5], "prompt": rows[5]["prompt"].replace("?", "!"), "rejected": "Other."}
    report = check(tmp_path, [*rows, rows[0], rows[0], rows[1], same_prompt, nearly])
    found = figures(report)
    assert (found["duplicate_rows"], found["repeated_prompts"], found["near_duplicates"]) == (3, 4, 1)
    first = report.findings["duplicate_rows"].ids[0]
    assert first.endswith("-2")


def test_contradictions(tmp_path: Path) -> None:
    rows = pairs(10)
    turned = {**rows[0], "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}
    assert figures(check(tmp_path, [*rows, turned]))["contradictory_prompts"] == 1


def verdicts(tmp_path: Path, rows: list[dict[str, Any]]) -> float:
    return figures(check(tmp_path, rows))["contradictory_prompts"]


def better(*texts: str, **more: Any) -> dict[str, Any]:
    return {"prompt": "Q?", "chosen": texts[0], "rejected": texts[1], **more}


def test_a_ranking_is_no_contradiction_and_a_circle_is_one(tmp_path: Path) -> None:
    ranking = [better("A", "B"), better("B", "C"), better("A", "C")]
    assert verdicts(tmp_path, ranking) == 0
    assert verdicts(tmp_path, [*ranking, better("C", "A")]) == 1
    assert verdicts(tmp_path, [better("A", "B"), better("B", "C"), better("C", "A")]) == 1
    assert verdicts(tmp_path, [better("A", "B"), {**better("B", "A"), "prompt": "Another?"}]) == 0


def test_ties_are_no_contradiction(tmp_path: Path) -> None:
    judged = {"prompt": "Q?", "response_a": "A", "response_b": "B", "winner": "tie"}
    swapped = {**judged, "response_a": "B", "response_b": "A"}
    decided = [{**judged, "prompt": f"Q{i}?", "winner": "A"} for i in range(3)]
    assert verdicts(tmp_path, [judged, swapped, *decided]) == 0
    assert verdicts(tmp_path, [judged, {**judged, "winner": "A"}, *decided]) == 0
    assert verdicts(tmp_path, [{**judged, "winner": "A"}, {**swapped, "winner": "A"}, *decided]) == 1
    assert verdicts(tmp_path, [{**judged, "winner": "A"}, {**swapped, "winner": "B"}, *decided]) == 0


def test_labels_and_lists_contradict_each_other_on_the_same_texts(tmp_path: Path) -> None:
    def labelled(text: str, label: bool) -> dict[str, Any]:
        return {"prompt": "Q?", "completion": text, "label": label}

    assert verdicts(tmp_path, [labelled("A", True), labelled("B", False), labelled("C", True)]) == 0
    assert verdicts(tmp_path, [labelled("A", True), labelled("B", False), labelled("B", True)]) == 1
    lists = [
        {"prompt": "Q?", "completions": list(texts), "scores": [3, 2, 1]} for texts in ("ABC", "ABD", "BCD", "DCA")
    ]
    assert [verdicts(tmp_path, lists[:count]) for count in (3, 4)] == [0, 1]


def test_an_answer_that_fits_everywhere(tmp_path: Path) -> None:
    rows = pairs(100)
    for i in range(12):
        rows[i]["rejected"] = "I cannot help  with that."
    report = check(tmp_path, [*rows, rows[0]])
    finding = report.findings["repeated_answers"]
    assert (finding.figure, finding.total, finding.noticed) == (12, 100, True)
    assert "'I cannot help with that.'" in finding.note
    assert figures(check(tmp_path, [better("A", "B"), better("A", "C"), better("A", "D")]))["repeated_answers"] == 0


def test_placeholders(tmp_path: Path) -> None:
    rows = pairs(20)
    rows[0]["prompt"] += " Input: <noinput>"
    rows[1]["chosen"] = "<nooutput>"
    rows[2]["rejected"] = "[deleted]"
    rows[3]["rejected"] = "The value is null."
    assert figures(check(tmp_path, rows))["placeholders"] == 3


def test_scores_that_contradict_the_pair(tmp_path: Path) -> None:
    rows = [{**row, "score_chosen": 2 + (i % 5), "score_rejected": 3} for i, row in enumerate(pairs(20))]
    report = check(tmp_path, [*rows, *pairs(5, seed=1)])
    finding = report.findings["chosen_scored_lower"]
    assert (finding.figure, finding.total, finding.noticed, finding.ok) == (4, 20, True, True)


def test_the_side_that_wins(tmp_path: Path) -> None:
    def judged(count: int, second: int) -> list[dict[str, Any]]:
        return [
            {"prompt": row["prompt"], "response_a": row["chosen"], "response_b": row["rejected"],
             "winner": "B" if i < second else "A"} for i, row in enumerate(pairs(count))
        ]  # fmt: skip

    finding = check(tmp_path, judged(120, 114)).findings["winner_side"]
    assert (finding.figure, finding.noticed, finding.note) == (0.95, True, "the second answer wins 114 of 120")
    assert not check(tmp_path, judged(120, 55)).findings["winner_side"].noticed
    assert "winner_side" not in check(tmp_path, judged(90, 80)).findings


LONG = {
    "Chinese": "请你详细说明为什么山区的夜晚比海边更冷，并举出三个在日常生活中可以观察到的例子，"
               "同时解释其中的物理原因以及人们如何应对这种现象。",
    "Japanese": "山の夜が海辺よりも寒くなる理由を詳しく説明し、日常生活で観察できる例を三つ挙げて、"
                "その物理的な原因と人々の対処法についても述べてください。",
    "Thai": "โปรดอธิบายโดยละเอียดว่าเหตุใดกลางคืนบนภูเขาจึงหนาวกว่าชายทะเลและยกตัวอย่างสามข้อที่สังเกตได้ในชีวิตประจำวัน",
    "Arabic": "اشرح بالتفصيل لماذا يكون الليل في الجبال أبرد منه على شاطئ البحر، واذكر ثلاثة أمثلة يمكن ملاحظتها "
              "في الحياة اليومية، ثم بيّن الأسباب الفيزيائية وكيف يتعامل الناس مع هذه الظاهرة في القرى والمدن",
    "English": "Explain in detail why the night in the mountains is colder than at the sea, and name three examples "
               "that can be observed in daily life, then give the reasons and how people in villages deal with it",
}  # fmt: skip
GREETING = {"Chinese": "你好！", "Japanese": "こんにちは。", "Thai": "สวัสดี", "Arabic": "مرحبا! ", "English": "Hello! "}
ENDS = {"Chinese": "。", "Japanese": "！", "Thai": "?", "Arabic": "؟", "English": "?"}


@pytest.mark.parametrize("language", LONG)
def test_near_duplicates_and_leaks_in_every_script(tmp_path: Path, language: str) -> None:
    text = LONG[language]
    middle = len(text) // 2
    spaced = language in ("Arabic", "English")
    draw, parts = random.Random(0), text.split() if spaced else list(text)
    long = (" " if spaced else "").join(part for _ in range(4) for part in draw.sample(parts, len(parts)))
    third = len(long) // 3
    other = f"7{long[1:third]}7{long[third + 1 : 2 * third]}7{long[2 * third + 1 :]}"  # three characters differ
    rows = [{"prompt": long, "chosen": "1", "rejected": "2"}, *pairs(5)]
    near = {"prompt": other, "chosen": "1", "rejected": "3"}
    assert figures(check(tmp_path, [*rows, near]))["near_duplicates"] == 1
    held_out = write(tmp_path / "held_out.jsonl", [{"prompt": text, "chosen": "3", "rejected": "4"}])
    greeted = {"prompt": GREETING[language] + text, "chosen": "5", "rejected": "6"}
    found = figures(check(tmp_path, [greeted, *pairs(5)], eval_path=str(held_out)))
    assert (found["leaked_prompts"], found["near_leaks"]) == (0, 1)
    halves = {"prompt": text[:middle] + text[:middle:-1], "chosen": "5", "rejected": "6"}  # the other half reversed
    assert figures(check(tmp_path, [halves, *pairs(5)], eval_path=str(held_out)))["near_leaks"] == 0


@pytest.mark.parametrize("language", LONG)
def test_shortcuts_in_every_script(tmp_path: Path, language: str) -> None:
    draw = random.Random(0)
    letters = LONG[language].replace(" ", "")
    rows = []
    for i in range(300):
        said = ["".join(draw.choice(letters) for _ in range(30)).strip() for _ in range(2)]
        rows.append(
            {"prompt": f"{i}", "chosen": f"{letters[5:8]} {said[0]}{ENDS[language]}", "rejected": f"{said[1]} 1"}
        )
    found = figures(check(tmp_path, rows))
    assert found["format_rule"] > 0.9  # the mark at the end
    assert found["word_rule"] > 0.9


def test_a_rule_of_length(tmp_path: Path) -> None:
    rows = [{**row, "chosen": row["chosen"] + " and more"} if i % 4 else row for i, row in enumerate(pairs(40))]
    found = figures(check(tmp_path, rows))
    lengths = [(len(row["chosen"]), len(row["rejected"])) for row in rows]
    wins = sum((a > b) + 0.5 * (a == b) for a, b in lengths) / 40
    assert found["longer_chosen"] == found["length_rule"] == wins > 0.8


def test_a_rule_of_words(tmp_path: Path) -> None:
    report = check(tmp_path, pairs(400))  # every chosen text ends with "a", every rejected one with "b"
    assert figures(report)["word_rule"] == 1.0
    assert "a (+)" in report.findings["word_rule"].note


def test_a_rule_of_format(tmp_path: Path) -> None:
    rows = [{**row, "rejected": " " + row["rejected"]} for row in pairs(10)]
    report = check(tmp_path, rows)
    assert figures(report)["format_rule"] == 1.0
    assert "begins with a space" in report.findings["format_rule"].note


def test_marks(tmp_path: Path) -> None:
    rows = pairs(20)
    rows[0]["chosen"] += " cafÃ©"
    rows[1]["rejected"] += " \ufffd"
    rows[2]["prompt"] += "\x0c"
    rows[3]["chosen"] += "<br/>&amp;"
    rows[4]["prompt"] += "[INST] hello"
    rows[5]["chosen"] += " Human: go on"
    found = figures(check(tmp_path, rows))
    names = ("damaged_encoding", "control_characters", "markup", "template_tokens", "speaker_marks")
    assert [found[name] for name in names] == [2, 1, 1, 1, 1]


def test_labels(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}?", "completion": f"a{i}", "label": i % 5 == 0} for i in range(100)]
    finding = check(tmp_path, rows).findings["label_balance"]
    assert finding.figure == 0.2
    # 20 good, 80 bad: weight * 20 / 80 is 1 at 4, and 4/3 at 16/3 = 5.33
    assert "loss.desirable_weight=4 to 5.33" in finding.note


def test_leaks(tmp_path: Path) -> None:
    held_out = pairs(10, seed=1)
    near = {**held_out[3], "prompt": held_out[3]["prompt"].replace("?", "!"), "chosen": "New.", "rejected": "Newer."}
    write(tmp_path / "b.jsonl", held_out)
    rows = [*pairs(10), held_out[0], near]
    found = check(tmp_path, rows, eval_path=str(tmp_path / "b.jsonl")).findings
    assert (found["leaked_prompts"].figure, found["near_leaks"].figure) == (1, 1)
    assert not found["leaked_prompts"].ok


def test_position_in_a_list(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [
        {"prompt": f"Q{i}?", "completions": [words(draw, 5) + f" {k}" for k in range(4)], "scores": [4, 1, 2, 3]}
        for i in range(100)
    ]
    assert figures(check(tmp_path, rows))["first_is_best"] == 1 - 1 / 4


def test_tokens(tmp_path: Path) -> None:
    rows = pairs(10)
    rows[0]["prompt"] = words(random.Random(5), 400)
    path = write(tmp_path / "a.jsonl", rows)
    made = tokenizer(NAMED.joinpath("chatml.jinja").read_text(), eos="<|im_end|>")
    report = examine(DataConfig(path=str(path), max_length=300), tokenizer=made)
    assert (report.rows, report.kept) == (10, 9)
    assert report.reasons()["too_long"]["count"] == 1
    assert (figures(report)["too_long"], figures(report)["identical_if_cut"]) == (1, 1)  # its prompt alone fills 300
    assert report.costs[0]["max_length"] == 256
    assert report.costs[-1]["dropped"] == 0


ODDITIES = {
    "llama-factory/dpo_en_demo.json": {"duplicate_rows": 5, "control_characters": 1},
    "llama-factory/kto_en_demo.json": {
        "contradictory_prompts": 0,
        "label_balance": 0.5,
    },  # two texts, one good, one bad
    "llms-from-scratch/instruction-data-with-preference.json": {"repeated_prompts": 25},
    "hh-rlhf/harmless-base-test.jsonl.gz": {"duplicate_rows": 0, "damaged_encoding": 0},
}


@pytest.mark.parametrize("name", FILES)
def test_check_of_every_file(shared_data: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(shared_data / name), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    _, kind, rows = FILES[name]
    assert (found["rows"], found["kind"]) == (rows, kind.value)
    assert found["kept"] + sum(reason["count"] for reason in found["rejected"].values()) == rows
    assert all({"figure", "threshold", "ok"} <= set(finding) for finding in found["findings"].values())
    oddities = ODDITIES.get(name, {})
    assert {key: found["findings"][key]["figure"] for key in oddities} == oddities


def test_threshold_fails_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pairs(30)
    path = str(write(tmp_path / "a.jsonl", [*rows, rows[0]]))
    assert main(["data", "check", path]) == 0
    assert main(["data", "check", path, "--json", "--threshold", "duplicate_rows=0"]) == 3
    out, err = capsys.readouterr()
    assert "duplicate_rows 1 (threshold 0)" in err
    found = json.loads(out[out.index("\n{") :])["findings"]["duplicate_rows"]
    assert (found["figure"], found["threshold"], found["ok"]) == (1, 0.0, False)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nowhere.jsonl"], "no such file"),
        (["a.jsonl", "--threshold", "duplicates=0"], "did you mean 'duplicate_rows'"),
        (["a.jsonl", "--threshold", "size=many"], "NAME=NUMBER"),
        (["a.jsonl", "data.max_lenght=3"], "did you mean 'data.max_length'"),
        (["--json", "data.max_length=3"], "give a FILE"),
    ],
)
def test_user_errors(
    argv: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").touch()
    assert main(["data", "check", *argv]) == 2
    assert says in capsys.readouterr().err


def test_several_files_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "one.jsonl", [*pairs(5), {**pairs(1)[0], "chosen": ""}])
    two = write(tmp_path / "two.jsonl", [{**pairs(1)[0], "chosen": "<script>alert(1)</script>"}, *pairs(4, seed=2)])
    page = tmp_path / "pages" / "check.html"
    assert main(["data", "check", str(one), str(two), "--json", "--html", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["kept"], found["rejected"]["empty_completion"]["count"]) == (11, 10, 1)
    assert [one["name"] for one in found["files"]] == ["one.jsonl", "two.jsonl"]
    html = page.read_text()
    assert "<svg" in html
    assert "http" not in html.replace("http-equiv", "")  # nothing from elsewhere
    assert "alert(1)" not in html


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", [*pairs(3), {**pairs(1)[0], "chosen": ""}])
    tokenizer(NAMED.joinpath("chatml.jinja").read_text(), eos="<|im_end|>").save_pretrained(tmp_path / "model")
    assert main(["data", "show", str(path), "--row", "1", "--model", str(tmp_path / "model")]) == 0
    out = capsys.readouterr().out.replace("│", "").replace("\n", "")
    assert pairs(3)[1]["chosen"].replace(" ", "") in out.replace(" ", "")
    assert out.count("<|im_end|>") == 1 + 2  # the prompt's turn, and both answers
    assert main(["data", "show", str(path), "--row", "3"]) == 2
    assert "empty_completion" in capsys.readouterr().err
    assert main(["data", "show", str(path), "--row", "77"]) == 2
    write(path, [{**pairs(1)[0], "chosen": "Hi<|im_end|>"}])
    assert main(["data", "show", str(path), "--row", "0", "--model", str(tmp_path / "model")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "a.jsonl:0" in line
    assert "end_token_inside" in line


@pytest.mark.parametrize("name", FILES)
def test_show_of_every_file(shared_data: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(shared_data / name), "--row", "0"]) == 0
    assert capsys.readouterr().out.count("\n") > 3


def test_every_finding_is_explained() -> None:
    assert all(meaning.says and meaning.advice for meaning in MEANINGS.values())


def test_the_base_model_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tokenizer(NAMED.joinpath("chatml.jinja").read_text(), eos="<|im_end|>")
    made.save_pretrained(tmp_path / "model")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(made), num_key_value_heads=2, **sizes))
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token has probability 1 / vocabulary: the shorter side is likelier
    model.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"Q{i}?", "chosen": "a" * (1 + i), "rejected": "b" * 9} for i in range(12)]
    path = str(write(tmp_path / "a.jsonl", rows))
    assert main(["data", "check", path, "--json", "--model", str(tmp_path / "model")]) == 0
    found = json.loads(capsys.readouterr().out)["findings"]
    lengths = [(len(made(row["chosen"])["input_ids"]), len(made(row["rejected"])["input_ids"])) for row in rows]
    wins = sum((a < b) + 0.5 * (a == b) for a, b in lengths)
    assert found["base_prefers_chosen"]["figure"] == pytest.approx(wins / 12, abs=1e-4)
    assert found["end_of_turn"]["figure"] == pytest.approx(1 / len(made), abs=1e-4)
