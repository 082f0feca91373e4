"""Tables of the runs on a real model and real pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markdown_tables import Row, formatted, quoted


def real_model(result: Any) -> str:
    columns = {
        "model": ("", "{}"),
        "accuracy": ("held-out accuracy", "{:.0%}"),
        "margin": ("margin, nats", "{:+.2f}"),
        "gained": ("pairs whose margin grew", "{:.0%}"),
        "chosen": ("change of chosen log-prob", "{:+.2f}"),
        "rejected": ("of rejected", "{:+.2f}"),
        "kl": ("KL to the start, nats", "{}"),
        "train_s": ("training, s", "{:.0f}"),
        "total_s": ("whole run, s", "{:.0f}"),
    }

    def row(name: str, figures: Row, seconds: Row) -> dict[str, Any]:
        return {
            "model": name,
            "accuracy": figures["accuracies/logps"],
            "margin": figures["margins/logps"],
            "gained": figures["accuracies/ratios"] if "kl" in figures else None,
            "chosen": figures["ratios/chosen"] if "kl" in figures else None,
            "rejected": figures["ratios/rejected"] if "kl" in figures else None,
            "kl": f"{figures['kl']:.2f} ± {figures['kl_sem']:.2f}" if "kl" in figures else None,
            "train_s": seconds.get("train"),
            "total_s": seconds.get("total"),
        }

    rows = result["rows"]
    table = [row("before", rows[0]["before"], {})]
    table += [row(f"`{r['method']}`", r["after"], r["seconds"]) for r in rows]
    commands = "\n".join(f"    {r['command']}" for r in rows)
    first = rows[0]
    words = (
        f"{first['train_records']} pairs to train on, {first['held_out_records']} held out, {first['steps']} steps, "
        "one seed: differences between the two methods are not evidence."
    )
    texts = []
    for i, sample in enumerate(first["samples"]):
        prompt = quoted(sample["prompt"].split("user\n")[-1].split("<|im_end|>")[0])
        said = [("before", sample["before"]), *((r["method"], r["samples"][i]["after"]) for r in rows)]
        texts.append("\n".join([f"> **{prompt}**", ">", *(f"> {name}: {quoted(text)}  " for name, text in said)]))
    return f"{commands}\n\n{formatted(columns, table)}\n\n{words}\n\n" + "\n\n".join(texts)


def real_methods(result: Any) -> str:
    """A table for each set of pairs, with its command."""
    columns = {
        "name": ("", "{}"),
        "point": ("held-out accuracy", "{}"),
        "margin": ("margin", "{:+.2f}"),
        "chosen_change": ("change of chosen log-prob", "{:+.2f}"),
        "rejected_change": ("of rejected", "{:+.2f}"),
        "kl": ("KL to the start, nats", "{:.2f}"),
        "length": ("length of its texts, tokens", "{:.1f}"),
        "told": ("against DPO", "{}"),
        "seconds": ("training, s", "{:.0f}"),
    }
    parts = []
    for one in result["sets"]:
        told = {}
        for verdict in one["verdicts"]:
            if verdict["metric"] == one["metric"] and "dpo" in (verdict["a"], verdict["b"]):
                other, word = verdict["b"], {"better": "worse", "worse": "better"}.get(verdict["verdict"])
                if other == "dpo":
                    other, word = verdict["a"], verdict["verdict"]
                told[other] = (word or verdict["verdict"]).replace("_", " ")
        rows = [
            row["figures"]
            | {
                "name": row["name"],
                "point": f"{row['point']:.0%} ({row['interval'][0]:.0%} to {row['interval'][1]:.0%})",
                "told": told.get(row["name"]),
                "seconds": row["cost"]["train_seconds"] or None,
            }
            for row in one["methods"]
            if row["figures"]
        ]
        parts.append(f"    {one['command']}\n\n{formatted(columns, rows)}")
    return "\n\n".join(parts)


TABLES: dict[str, Callable[[Any], str]] = {"real_model": real_model, "real_methods": real_methods}
