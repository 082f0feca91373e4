"""Tables and pictures of the suites of `rlhf.py`, from their result files, with what was predicted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markdown_tables import predictions_table, table
from world_tables import within

from prefopt.compare.frontier import interpolate
from prefopt.report.figures import Axes, Curve, line_chart, styles, svg_file
from prefopt.report.formatting import number, signed

HERE = Path(__file__).parent
OFFLINE = ("DPO", "DPO + SFT")  # rows of controlled.json beside those of `against_dpo`
YARDSTICKS = {"tilt": "*oracle tilt*", "best_of_n": "*best of n*"}
Place = Sequence[Any]  # [row, figure], ["row", "at KL"] or [number], as predictions name what they compare


def predictions(suite: str) -> list[dict[str, Any]]:
    """What was predicted of a suite."""
    found: list[dict[str, Any]] = json.loads((HERE / "rlhf_predictions.json").read_text())[suite]
    return found


def controlled() -> Any:
    """The results of the methods on pairs, and the yardsticks."""
    return json.loads((HERE / "results" / "controlled.json").read_text())


def figure(result: Any, place: Place) -> float | None:
    """The number that a prediction names; None where it was not measured."""
    if len(place) == 1:
        return float(place[0])
    name, what = place
    if (which := what.partition(" "))[0] in ("best", "last"):
        points: list[dict[str, Any]] = next((row["points"] for row in result["rows"] if row["name"] == name), [])
        values = [point[which[2]] for point in points if point[which[2]] is not None]
        return None if not values else max(values) if which[0] == "best" else values[-1]
    if what.startswith("at "):
        return at(result, name, float(what.removeprefix("at ")))
    return next((row[what] for row in result["rows"] if row["name"] == name), None)


def at(result: Any, name: str, kl: float) -> float | None:
    """The reward of a row or yardstick at a KL, of this suite or of the methods on pairs."""
    beside = controlled()
    if name in YARDSTICKS:
        points = beside["yardsticks"][name]
        x, y = (np.array([point[part] for point in points]) for part in ("kl", "reward"))
        value = float(interpolate(x, y, [kl])[0])
        return value if np.isfinite(value) else None
    rows = (row["at_kl"] for row in beside["rows"] if row["name"] == name)
    by_kl: list[dict[str, Any]] = result["at_kl"].get(name) or next(rows, [])
    return next((one["value"] for one in by_kl if one["kl"] == kl), None)


def checked(result: Any, suite: str) -> str:
    """The predictions of a suite, what was found, and whether they held."""
    return predictions_table(predictions(suite), partial(figure, result))


def label(row: Mapping[str, Any]) -> str:
    """The name of a row with its strength."""
    return f"{row['name']}, {row['strength']} {row['value']:g}"


def every_row(result: Any, *, objective: bool = False) -> str:
    """Figures and costs of all rows."""
    head = ["", "reward", "KL", *(["reward − β KL"] if objective else []), "valid", "length", "distinct-2", "labels",
            "tokens sampled", "trained", "processor s"]  # fmt: skip
    rows = []
    for row in result["rows"]:
        if row["true_reward"] is None:
            rows.append([label(row), "did not finish", *["–"] * (len(head) - 2)])
            continue
        rows.append([
            label(row), within(row, "true_reward", sign=True), within(row, "kl"),
            *([signed(row["objective"])] if objective else []), f"{100 * row['valid']:.0f} %", number(row["length"], 1),
            number(row["distinct_2"]), *(f"{row[name]:,.0f}" for name in ("labels", "tokens_sampled", "tokens")),
            number(row["processor_seconds"], 0),
        ])  # fmt: skip
    return table(head, rows)


def ending(result: Any) -> str:
    """Errors, steps and cost."""
    s = result["setting"]
    text = (
        f"± one standard error over {s['seeds']} seeds. {s['steps']} steps of {s['texts']} texts. "
        f"{result['worker_seconds'] / 60:.0f} minutes of one worker on a machine shared with other work."
    )
    return text + (f" Not run: {', '.join(result['not_run'])}." if result["not_run"] else "")


def at_matched_kl(result: Any) -> str:
    """Reward at matched KL, beside the methods on pairs and the yardsticks."""
    kls = [kl for kl in result["setting"]["kl"] if kl <= 2]
    names = [*result["at_kl"], *OFFLINE, *YARDSTICKS]
    rows = []
    for name in names:
        shares = [
            f" ({value / tilt:.0%})" if value is not None and tilt and name in result["at_kl"] else ""
            for kl in kls
            for value, tilt in [(at(result, name, kl), at(result, "tilt", kl))]
        ]
        values = ["–" if (value := at(result, name, kl)) is None else number(value) for kl in kls]
        written = YARDSTICKS.get(name, f"{name}, pairs" if name in OFFLINE else name)
        rows.append([written, *(value + share for value, share in zip(values, shares, strict=True))])
    words = (
        "In brackets: the share of the oracle tilt's reward. Rows on pairs and yardsticks are those of "
        "`controlled.py`, with the same start, steps, texts a step and test prompts."
    )
    return f"{table(['', *(f'reward at KL {kl:g}' for kl in kls)], rows)}\n\n{words}"


def against_dpo(result: Any) -> str:
    """The same with what was predicted, figures and costs of all rows."""
    parts = at_matched_kl(result), checked(result, "rlhf_against_dpo"), every_row(result), ending(result)
    return "\n\n".join(parts)


def overoptimisation(result: Any) -> str:
    """Every line at every strength, and the curve fitted to it."""
    start = result["setting"]["start"]
    rows = []
    for row in result["rows"]:
        points = [point for point in row["points"] if point["true_reward"] is not None]
        gains = "; ".join(
            f"{number(point['kl'])}: {signed(point['true_reward'] - start)}"
            + (f" ({signed(point['proxy'])})" if point["proxy"] is not None else "")
            for point in points
        )
        fit = row["fit"]
        written = ["–", "–"] if fit is None else [
            f"{number(fit[name])} ({number(fit[f'{name}_low'])} to {number(fit[f'{name}_high'])})"
            for name in ("alpha", "beta")
        ]  # fmt: skip
        rows.append([row["name"], gains, *written])
    head = ["", "KL: true reward gained (gain of the model's score)", "alpha", "beta"]
    s = result["setting"]
    return (
        f"{table(head, rows)}\n\n{checked(result, 'overoptimisation')}\n\n"
        "Fits of reward gained = d (alpha − beta log d), d = √KL; intervals: 95 %, bootstrap over runs. "
        f"{s['seeds']} seeds, {s['steps']} steps. "
        f"{result['worker_seconds'] / 60:.0f} minutes of one worker on a machine shared with other work."
    )


def picture_overoptimisation(result: Any) -> str:
    """True reward, and the models' own scores dashed, against the square root of the KL."""
    start, curves = result["setting"]["start"], []
    names = [row["name"] for row in result["rows"]]
    for row in result["rows"]:
        points = sorted((p for p in row["points"] if p["true_reward"] is not None), key=lambda p: p["kl"])
        x = [p["kl"] ** 0.5 for p in points]
        curves.append(Curve(label=row["name"], x=x, y=[p["true_reward"] - start for p in points]))
        if all(p["proxy"] is not None for p in points):
            curves.append(Curve(label=row["name"], x=x, y=[p["proxy"] / 2 for p in points], dashed=True))
    axes = Axes(x="square root of the KL to the SFT model", y="reward gained; dashed: half the model's score")
    summary = "True reward and scores of reward models against the square root of the KL"
    return svg_file(line_chart(curves, styles(names), axes, summary=summary))


def plain(suite: str, *, objective: bool = False) -> Callable[[Any], str]:
    """The table of a suite of one strength for each row."""

    def written(result: Any) -> str:
        return f"{every_row(result, objective=objective)}\n\n{checked(result, suite)}\n\n{ending(result)}"

    return written


def picture_against_dpo(result: Any) -> str:
    """Reward against KL of methods on own samples, on pairs, and of the yardsticks."""
    beside = controlled()
    curves = [*_curves(result["rows"], result["at_kl"]), *_curves(_on_pairs(beside), OFFLINE)]
    yardsticks = [
        Curve(label=text, x=[p["kl"] for p in beside["yardsticks"][name]],
              y=[p["reward"] for p in beside["yardsticks"][name]])
        for name, text in (("tilt", "the most a KL allows"), ("best_of_n", "best of n"))
    ]  # fmt: skip
    right = min(6.0, max(max(one.x) for one in curves) + 0.3)
    top = max(y for one in (*curves, *yardsticks) for x, y in zip(one.x, one.y, strict=True) if x <= right)
    return svg_file(
        line_chart(
            curves, styles([one.label for one in curves]),
            Axes(x="KL to the SFT model, nats per text", y="true reward", y_range=(-0.6, top + 0.25)),
            yardsticks=yardsticks, x_range=(0, right),
            summary="Reward against KL of methods on own samples and on pairs, below the oracle tilt",
        )
    )  # fmt: skip


def _on_pairs(beside: Any) -> Iterator[dict[str, Any]]:
    for row in beside["rows"]:
        for point in row["points"]:
            yield {"name": row["name"], **point}


def _curves(rows: Any, names: Any) -> Iterator[Curve]:
    rows = [row for row in rows if row["true_reward"] is not None]
    for name in names:
        own = [row for row in rows if row["name"] == name]
        text = f"{name}, pairs" if name in OFFLINE else name
        yield Curve(label=text, x=[r["kl"] for r in own], y=[r["true_reward"] for r in own],
                    y_se=[r["true_reward_se"] or 0 for r in own])  # fmt: skip


TABLES: dict[str, Callable[[Any], str]] = {
    "rlhf_against_dpo": against_dpo,
    "rlhf_against_dpo/at_kl": at_matched_kl,
    "rlhf_sources": plain("rlhf_sources"),
    "rlhf_kl_place": plain("rlhf_kl_place", objective=True),
    "rlhf_labels": plain("rlhf_labels"),
    "overoptimisation": overoptimisation,
}
PICTURES: dict[str, Callable[[Any], str]] = {
    "rlhf_against_dpo": picture_against_dpo,
    "overoptimisation": picture_overoptimisation,
}
