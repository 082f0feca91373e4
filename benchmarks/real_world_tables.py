"""Tables and the picture of the instruction world: its rule, and the methods on a real model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markdown_tables import formatted, predictions_table, quoted, ran_on, table

from prefopt.report.figures import Axes, Curve, line_chart, styles, svg_file
from prefopt.report.formatting import number
from prefopt.worlds.instructions import QUALITIES

PREDICTIONS = Path(__file__).with_name("real_world_predictions.json")
SCORES = {"true_reward": "true reward", "judge": "judge's score"}
COSTS = ("labels", "tokens_sampled", "tokens_trained", "train_seconds")
OFFLINE = ("dpo", "ipo", "kto", "orpo", "simpo", "dpop")


def instruction_reward(result: Any) -> str:
    """What the rule gives to kinds of texts, and its best and worst samples."""
    columns = {
        "name": ("", "{}"), "texts": ("texts", "{}"), "reward": ("reward", "{:.2f}"),
        "sd": ("standard deviation", "{:.2f}"),
        "largest": ("largest", "{:.2f}"), **{name: (name, "{:.2f}") for name in QUALITIES},
    }  # fmt: skip
    parts = [formatted(columns, result["rows"])]
    for which in ("best", "worst"):
        rows = [[number(one["reward"], 4), _cell(one["prompt"]), _cell(one["text"]) + ("" if one["ended"] else " …")]
                for one in result[which]]  # fmt: skip
        parts.append(f"The {len(rows)} {which} samples of the model (… was cut off):")
        parts.append(table(["reward", "instruction", "answer"], rows))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return quoted(text) or "(empty)"


def real_world(result: Any, suite: str) -> str:
    """Every row of a comparison with its verdict against DPO, what was predicted, and the caveats."""
    metric = result["metric"]
    columns = {
        "name": ("", "{}"), "value": (SCORES.get(metric, metric), "{}"),
        "against": ("against DPO", "{}"), "kl": ("KL, nats", "{:.2f}"), "valid": ("valid", "{:.0%}"),
        "length": ("length, tokens", "{:.1f}"), "accuracy": ("held-out accuracy", "{:.0%}"),
        "setting": ("setting", "{}"),
        "labels": ("labels", "{:,.0f}"), "tokens_sampled": ("tokens sampled", "{:,.0f}"),
        "tokens_trained": ("trained", "{:,.0f}"), "train_seconds": ("training, s", "{:,.0f}"),
    }  # fmt: skip
    rows = []
    for row in result["rows"]:
        if row["point"] is None:
            rows.append({"name": row["name"], "value": row["reason"] or "not run"})
            continue
        interval = row["interval"] or [None]
        spread = "" if None in interval else " ({} to {})".format(*map(number, interval))
        chosen = ", ".join(f"{name} {value:.3g}" for name, value in (row["chosen"] or {}).items())
        rows.append({
            **row, **{name: row["cost"].get(name) or None for name in COSTS},
            "value": number(row["point"]) + spread, "against": against_dpo(result, row["name"]),
            "setting": chosen + (" (at the edge of what was tried)" if row["edges"] else ""),
        })  # fmt: skip
    s = result["setting"]
    told = (
        f"{s['trials']} trials of each row, {s['seeds']} seeds, {s['steps']} steps of {s['pairs']} pairs, one thread. "
        f"Intervals: 95 %; verdicts: 5 %, Holm over all pairs of rows. " + ran_on([result["jobs"]])
    )
    predictions = json.loads(PREDICTIONS.read_text())[suite]
    checked = predictions_table(predictions, partial(figure, result))
    return f"{formatted(columns, rows)}\n\n{told}\n\n{checked}"


def against_dpo(result: Any, name: str) -> str | None:
    """The verdict on a row against DPO, as seen from the row."""
    for pair in result["verdicts"]:
        if {pair["a"], pair["b"]} == {name, "dpo"}:
            word = pair["verdict"]
            turned = {"better": "worse", "worse": "better"}.get(word, word) if pair["a"] == "dpo" else word
            return str(turned).replace("_", " ")
    return None


def figure(result: Any, place: Sequence[Any]) -> float | None:
    """The number that a prediction names; None where it was not measured."""
    if len(place) == 1:
        return float(place[0])
    name, what = place
    if name == "better than dpo":
        return float(sum(against_dpo(result, other) == "better" for other in OFFLINE))
    names = OFFLINE if name == "best offline" else (name,)
    values = [row[what] for row in result["rows"] if row["name"] in names and row.get(what) is not None]
    return max(values, default=None)


def picture(result: Any) -> str:
    """The score of every row against its KL to the start."""
    rows = [row for row in result["rows"] if row["point"] is not None and row["kl"] is not None]
    curves = [Curve(label=row["name"], x=[row["kl"]], y=[row["point"]]) for row in rows]
    axes = Axes(x="KL to the start, nats per text", y=result["metric"].replace("_", " "))
    return svg_file(
        line_chart(curves, styles([row["name"] for row in rows]), axes, summary="Reward against KL by method")
    )


SUITES = ("real_world_instructions", "real_world_hh_rlhf")
TABLES: dict[str, Callable[[Any], str]] = {
    "instruction_reward": instruction_reward,
    **{suite: partial(real_world, suite=suite) for suite in SUITES},
}
PICTURES: dict[str, Callable[[Any], str]] = dict.fromkeys(SUITES, picture)
