"""Tables of what was measured on a GPU, and of changes tried on the training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from machine import QUIET
from markdown_tables import formatted


def gpu(result: Any) -> str:
    """Correctness, memory and speed, as far as they were measured."""
    there = ", ".join(name for name, found in result["installed"].items() if found) or "none"
    parts = [
        f"{result['card']}, torch {result['torch']}, transformers {result['transformers']}; optional programs: {there}."
    ]
    if rows := result.get("correctness"):
        columns = {
            "family": ("", "{}"), "precision": ("precision", "{}"),
            "tree_token": ("trees: largest error, nats", "{:.1e}"),
            "plain_token": ("plain", "{:.1e}"), "tree_gradient": ("trees: error of the gradient", "{:.1e}"),
            "plain_gradient": ("plain", "{:.1e}"), "sampler_ratio": ("sampler to scorer − 1", "{:.1e}"),
            "verdict": ("within twice the plain error", "{}"),
        }  # fmt: skip
        told = [row | {"verdict": row.get("error") or ("yes" if row["ok"] else "**no**")} for row in rows]
        parts.append(formatted(columns, told))
    if rows := result.get("memory"):
        columns = {
            "setting": ("", "{}"), "estimate": ("planned, GiB", "{:.2f}"), "measured": ("measured", "{:.2f}"),
            "error": ("error", "{:+.1%}"),
        }  # fmt: skip
        parts.append(formatted(columns, rows))
    if rows := result.get("speed"):
        columns = {
            "size": ("", "{}"), "lengths": ("texts", "{}"), "completions": ("completions", "{}"),
            "program": ("program", "{}"),
            "pairs_per_s": ("pairs/s", "{:.1f}"), "useful_tokens_per_s": ("useful tokens/s", "{:,.0f}"),
            "share_of_products": ("share of the product rate", "{:.2f}"), "peak_gib": ("peak GiB", "{:.1f}"),
            "error": ("not measured", "{}"),
        }  # fmt: skip
        parts += [f"Products of matrices: {result['products_tflop_per_s']:.0f} TFLOP/s.", formatted(columns, rows)]
    if result["left_out"]:
        parts.append("Left out: " + "; ".join(result["left_out"]) + ".")
    return "\n\n".join(parts)


def step_variants(result: Any) -> str:
    """Each change beside the step as it is."""
    first = result["rows"][0]
    rows = [
        row
        | {
            "time": None if "error" in row else row["step_s"] / first["step_s"],
            "memory": None if "error" in row else row["peak_gib"] / first["peak_gib"],
            "same": None if "error" in row else "yes" if row["same_gradient"] else "**no**",
        }
        for row in result["rows"]
    ]
    columns = {
        "name": ("", "{}"), "step_s": ("s per step", "{:.2f}"), "time": ("against the step as it is", "{:.2f}×"),
        "first_step_s": ("first step", "{:.1f}"), "peak_gib": ("peak GiB", "{:.2f}"), "memory": ("memory", "{:.2f}×"),
        "same": ("same gradient", "{}"), "others": ("other processes", "{:.0%}"), "error": ("failed", "{}"),
    }  # fmt: skip
    busy = any(row.get("others", 0) > QUIET for row in rows)
    note = " The machine did other work at the same time, which slows these times." if busy else ""
    ran = f"{result['processor']}, {result['threads']} threads, {result['rounds']} runs of each.{note}"
    return f"{ran}\n\n{formatted(columns, rows)}"


TABLES: dict[str, Callable[[Any], str]] = {"gpu": gpu, "step_variants": step_variants}
