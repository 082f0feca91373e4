"""Tables and pictures of the suites on the review world, from their result files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markdown_tables import table

from prefopt.report.figures import Axes, Curve, Dots, dot_chart, line_chart, styles, svg_file
from prefopt.report.formatting import number, signed

Row = Mapping[str, Any]


def within(row: Row, name: str, digits: int = 2, *, sign: bool = False) -> str:
    """A mean over seeds, with its standard error."""
    if row.get(name) is None:
        return "–"
    error = row.get(f"{name}_se")
    written = (signed if sign else number)(row[name], digits)
    return f"{written} ± {number(error, digits)}" if error is not None else written


def controlled(result: Any) -> str:
    """Reward at matched KL, the points behind it, and the yardsticks."""
    kls = result["setting"]["kl"]
    rows = []
    for row in _by_reward(result):
        cells = [_at(row, i) for i in range(len(kls))]
        verdict = "" if row["name"] == "DPO" else _against(result["pairs"], row["name"], "DPO")
        rows.append([row["name"], f"{row['learning_rate']:g}", *cells, verdict])
    for name, label in (("tilt", "*oracle tilt*"), ("best_of_n", "*best of n*")):
        rows.append([label, "", *(_on(result["yardsticks"][name], kl) for kl in kls), ""])
    first = table(["", "learning rate", *(f"reward at KL {kl:g}" for kl in kls), "against DPO"], rows)
    points = [
        [f"{row['name']}, {row['strength']} {point['value']:g}" if row["strength"] else row["name"],
         within(point, "true_reward", sign=True), within(point, "kl"), number(point["kl_monte_carlo"]),
         f"{100 * point['valid']:.0f} %", number(point["length"], 1), number(point["entropy"], 1),
         number(point["distinct_2"]), f"{100 * point['true_accuracy']:.0f} %",
         within(point, "chosen_change", sign=True), within(point, "rejected_change", sign=True)]
        if point["true_reward"] is not None else [f"{row['name']}, {point['value']}", "did not finish", *["–"] * 9]
        for row in result["rows"] for point in row["points"]
    ]  # fmt: skip
    second = table(
        ["", "reward", "KL", "KL by Monte-Carlo", "valid", "length", "entropy", "distinct-2", "held-out accuracy",
         "change of chosen", "of rejected"], points,
    )  # fmt: skip
    best = table(
        ["n", "reward", "KL, measured", "log n − (n−1)/n"],
        [[f"{p['setting']:g}", number(p["reward"]), number(p["kl"]), number(p["bound"])]
         for p in result["yardsticks"]["best_of_n"]],
    )  # fmt: skip
    check = result["kl_check"]
    pairs = [p for p in result["pairs"] if "DPO again" not in (p["a"], p["b"])]
    shares = "; ".join(
        f"{sum(p['verdict'] != 'cannot_tell' for p in own)} of {len(own)} at KL {kl:g}"
        for kl in kls
        if (own := [p for p in pairs if p["kl"] == kl])
    )
    words = (
        f"Intervals: 95 %, bootstrap over prompts and seeds. Verdicts: 5 %, Holm over all pairs of methods at a KL "
        f"(`prefopt.compare.statistics`). A dash: the strengths do not reach this KL, and nothing is extrapolated. "
        f"KL 1.3 was added when the points were known, because most methods reach it. "
        f"Pairs of methods that can be told apart: {shares}. {check['runs']} runs, "
        f"{result['worker_seconds'] / 3600:.1f} hours of one worker on a machine shared with other work.\n\n"
        f"The two estimates of KL, on 4,096 samples of each run: their difference over its standard error has mean "
        f"{signed(check['mean_z'])}, standard deviation {number(check['sd_z'])} (0 and 1 if both are right), at most "
        f"{number(check['largest_z'], 1)}."
    )
    return (
        f"{first}\n\n{words}\n\nBest of n samples of the SFT model:\n\n{best}\n\n"
        f"<details><summary>Every strength, ± one standard error over {result['setting']['seeds']} seeds</summary>\n\n"
        f"{second}\n\n</details>"
    )


def _against(pairs: Sequence[Row], name: str, other: str) -> str:
    """The verdicts of `name` against `other`, by KL."""
    turned = {"better": "worse", "worse": "better"}
    found = {
        pair["kl"]: pair["verdict"] if pair["a"] == name else turned.get(pair["verdict"], pair["verdict"])
        for pair in pairs
        if {pair["a"], pair["b"]} == {name, other}
    }
    told = [
        f"{word} at {', '.join(f'{kl:g}' for kl in where)}"
        for word in turned
        if (where := [kl for kl, verdict in found.items() if verdict == word])
    ]
    return "; ".join(told) or ("cannot tell" if found else "no KL in common")


def _by_reward(result: Any) -> list[Any]:
    """Rows with a curve, by reward at the KL that most methods reach; then the others, then the control."""
    rows = [row for row in result["rows"] if row["at_kl"]]
    shared = [sum(row["at_kl"][i]["value"] is not None for row in rows) for i in range(len(result["setting"]["kl"]))]
    most = shared.index(max(shared))

    def key(row: Row) -> tuple[bool, float]:
        value = row["at_kl"][most]["value"]
        return row["name"] == "DPO again", -value if value is not None else 99.0

    return sorted(rows, key=key)


def _at(row: Row, i: int) -> str:
    one = row["at_kl"][i]
    return "–" if one["value"] is None else f"{number(one['value'])} ({number(one['low'])} to {number(one['high'])})"


def _on(points: Sequence[Row], kl: float) -> str:
    import numpy as np

    from prefopt.compare.frontier import interpolate

    found = interpolate(np.array([p["kl"] for p in points]), np.array([p["reward"] for p in points]), [kl])
    return number(float(found[0]))


def displacement(result: Any) -> str:
    """Changes of log-prob by world and method."""
    parts = []
    for world in ("on-policy", "off-policy"):
        rows = [
            [r["name"], within(r, "chosen_change", sign=True), within(r, "rejected_change", sign=True),
             within(r, "true_reward", sign=True), within(r, "kl"), f"{100 * r['valid']:.0f} %", r["claim"]]
            for r in result["rows"] if r["world"] == world
        ]  # fmt: skip
        head = ["", "change of chosen, nats", "of rejected", "reward", "KL", "valid", "its paper says"]
        parts.append(f"**Chosen texts {world}**\n\n{table(head, rows)}")
    return "\n\n".join([*parts, _cost(result)])


def noise(result: Any) -> str:
    """Reward by share of flipped labels."""
    shares = sorted({row["flips"] for row in result["rows"]})
    names = list(dict.fromkeys(row["name"] for row in result["rows"]))
    found = {(row["name"], row["flips"]): row for row in result["rows"]}

    def part(figure: str, digits: int = 2) -> list[list[str]]:
        return [
            [name, *(within(found[name, s], figure, digits) if (name, s) in found else "" for s in shares)]
            for name in names
        ]

    head = [f"{s:.0%} flipped" for s in shares]
    claims = "; ".join(
        f"{name}: {found[name, 0.0]['claim']}" for name in names if "control" not in found[name, 0.0]["claim"]
    )
    return (
        f"True reward:\n\n{table(['', *head], part('true_reward'))}\n\nKL to the start, nats:\n\n"
        f"{table(['', *head], part('kl'))}\n\nHeld-out pairs ordered as the exact reward does:\n\n"
        f"{table(['', *head], part('true_accuracy', 3))}\n\nTheir papers say: {claims}.\n\n{_cost(result)}"
    )


def length(result: Any) -> str:
    """Length with and without a bias in the labels."""
    names = list(dict.fromkeys(row["name"] for row in result["rows"]))
    found = {(row["name"], row["bias"]): row for row in result["rows"]}
    rows = []
    for name in names:
        plain, biased = found[name, 0.0], found[name, 0.05]
        change = signed(biased["length"] - plain["length"])
        rows.append([name, within(plain, "length"), within(biased, "length"), change,
                     within(plain, "true_reward", sign=True), within(biased, "true_reward", sign=True),
                     within(plain, "kl"), within(biased, "kl"), plain["claim"]])  # fmt: skip
    head = ["", "length, fair labels", "biased labels", "difference", "reward, fair", "biased", "KL, fair", "biased",
            "its paper says"]  # fmt: skip
    return f"{table(head, rows)}\n\n{_cost(result)}"


def scarce(result: Any) -> str:
    """KTO with few desirable texts."""
    rows = [
        [f"{r['dropped']:.0%}", r["name"], within(r, "true_reward", sign=True), within(r, "kl"),
         f"{100 * r['valid']:.0f} %", number(r["length"], 1), within(r, "chosen_change", sign=True),
         within(r, "rejected_change", sign=True)]
        for r in result["rows"]
    ]  # fmt: skip
    head = ["dropped", "", "reward", "KL", "valid", "length", "change of chosen", "of rejected"]
    return f"{table(head, rows)}\n\nThe paper says: {result['rows'][0]['claim']}.\n\n{_cost(result)}"


def _cost(result: Any) -> str:
    failed = sum(row["failed"] for row in result["rows"])
    ended = "All runs finished." if not failed else f"{failed} runs did not finish; the rows are of those that did."
    s = result["setting"]
    errors = f"± one standard error over {s['seeds']} seeds." if s["seeds"] > 1 else "One seed, so no standard errors."
    return (
        f"{errors} {s['steps']} steps of {s['batch']} records. {ended} "
        f"{result['worker_seconds'] / 60:.0f} minutes of one worker on a machine shared with other work."
    )


def picture_controlled(result: Any) -> str:
    """The frontier."""
    rows = _by_reward(result)
    look = styles([row["name"] for row in result["rows"]])
    curves = []
    for row in rows:
        points = [p for p in row["points"] if p["true_reward"] is not None]
        curves.append(
            Curve(label=row["name"], x=[p["kl"] for p in points], y=[p["true_reward"] for p in points],
                  y_se=[p["true_reward_se"] or 0 for p in points])
        )  # fmt: skip
    named = (("tilt", "oracle tilt: the most that a KL allows"), ("best_of_n", "best of n"))
    yardsticks = [
        Curve(label=label, x=[p["kl"] for p in points], y=[p["reward"] for p in points])
        for name, label in named
        if (points := result["yardsticks"][name])
    ]
    top = max(max(one.y) for one in (*curves, *yardsticks))
    furthest = min(6.0, max(max(one.x) for one in curves) + 0.3)
    return svg_file(
        line_chart(
            curves, look,
            Axes(x="KL to the SFT model, nats per text", y="true reward", y_range=(-0.6, top + 0.25)),
            yardsticks=yardsticks, x_range=(0, furthest),
            summary="Reward against KL of twelve methods at four strengths, below the oracle tilt",
        )
    )  # fmt: skip


def picture_displacement(result: Any) -> str:
    """Change of chosen log-prob, on-policy and off-policy."""
    series = [
        Dots(label=f"chosen texts {world}", values={
            r["name"]: (r["chosen_change"], r["chosen_change_se"] or 0) for r in result["rows"] if r["world"] == world
        })
        for world in ("on-policy", "off-policy")
    ]  # fmt: skip
    names = list(dict.fromkeys(r["name"] for r in result["rows"]))
    return svg_file(
        dot_chart(names, series, styles([one.label for one in series]),
                   Axes(x="change of the log-prob of held-out chosen texts, nats", y=""),
                   summary="Change of chosen log-prob by method")
    )  # fmt: skip


def picture_noise(result: Any) -> str:
    """Reward against the share of flips."""
    return _lines(result, "flips", "share of flipped labels", "Reward by share of flipped labels")


def picture_scarce(result: Any) -> str:
    """Reward against the share of desirable texts dropped."""
    return _lines(result, "dropped", "share of desirable texts dropped", "Reward by share of desirable texts dropped")


def _lines(result: Any, by: str, x: str, summary: str) -> str:
    names = list(dict.fromkeys(row["name"] for row in result["rows"]))
    own = {name: [row for row in result["rows"] if row["name"] == name] for name in names}
    shown = [name for name in names if len(own[name]) > 1]
    curves = [
        Curve(label=name, x=[r[by] for r in own[name]], y=[r["true_reward"] for r in own[name]],
              y_se=[r["true_reward_se"] or 0 for r in own[name]])
        for name in shown
    ]  # fmt: skip
    return svg_file(line_chart(curves, styles(names), Axes(x=x, y="true reward"), size=(6.2, 3.0), summary=summary))


def picture_length(result: Any) -> str:
    """Length with fair and with biased labels."""
    series = [
        Dots(label=label, values={
            r["name"]: (r["length"], r["length_se"] or 0) for r in result["rows"] if r["bias"] == bias
        })
        for bias, label in ((0.0, "fair labels"), (0.05, "labels that favour length"))
    ]  # fmt: skip
    names = list(dict.fromkeys(r["name"] for r in result["rows"]))
    return svg_file(
        dot_chart(names, series, styles([one.label for one in series]), Axes(x="tokens of a text", y=""), zero=False,
                   summary="Length of texts by method, with fair and with biased labels")
    )  # fmt: skip


TABLES: dict[str, Callable[[Any], str]] = {
    "controlled": controlled,
    "displacement": displacement,
    "noise": noise,
    "length": length,
    "scarce": scarce,
}
PICTURES: dict[str, Callable[[Any], str]] = {
    "controlled": picture_controlled,
    "displacement": picture_displacement,
    "noise": picture_noise,
    "length": picture_length,
    "scarce": picture_scarce,
}
