"""Tables of costs: time, memory, planning, data, hours of running."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from machine import QUIET
from markdown_tables import Row, formatted


def planner(result: Any) -> str:
    columns = {
        "records": ("records", "{:,}"),
        "processes": ("processes", "{:,}"),
        "batch": ("global batch", "{:,}"),
        "imbalance": ("imbalance, worst step", "{:.2%}"),
        "imbalance_mean": ("mean", "{:.2%}"),
        "drawn": ("unplanned, mean", "{:.0%}"),
        "seconds": ("seconds per epoch", "{:.2f}"),
        "keys_seconds": ("seconds to compare the prompts, once per run", "{:.2f}"),
        "ms_per_step": ("ms per step", "{:.2f}"),
        "peak_gib": ("peak GiB", "{:.2f}"),
    }
    return (
        formatted(columns, result["rows"])
        + "\n\nWith fewer pairs per process:\n\n"
        + formatted(columns, result["limits"])
    )


CONTESTS = {
    "batch_4": "DPO, reference ready, batch 4",
    "batch_16": "DPO, reference ready, batch 16",
    "methods": "five methods, reference included",
    "completions_8": "eight completions of a prompt, against padded rows of prefopt",
}


def ratios(result: Any) -> str:
    """The short table: prefopt divided by TRL, with the processor and what else it did."""
    rows = []
    for line in result["lines"]:
        # A contest of steps compares steps, one of whole runs compares runs.
        kept = ("wall_ratio",) if line["contest"] == "methods" else ("speed_ratio", "utilisation")
        shown = {key: line.get(key) for key in (*kept, "memory_ratio", "runs")}
        rows.append(shown | of_line(line))
    columns = {
        **OF_LINE,
        "speed_ratio": ("pairs/s against TRL", "{:.2f}×"),
        "wall_ratio": ("whole run against TRL", "{:.2f}×"),
        "memory_ratio": ("peak memory against TRL", "{:.2f}×"),
        "utilisation": ("utilisation", "{:.2f}"),
        "runs": ("runs", "{}"),
        "others": ("other processes", "{}"),
    }
    return formatted(columns, rows) + note_of_others(result["lines"])


OF_LINE = {"line": ("", "{}"), "processor": ("processor", "{}"), "allocator": ("allocator", "{}")}


def of_line(line: Row) -> dict[str, Any]:
    """What a line is of, and the largest share of the cores that other processes took during it."""
    return {"line": CONTESTS[line["contest"]], "processor": line["processor"], "allocator": allocator(line),
            "others": share_of_others(line["others"])}  # fmt: skip


def share_of_others(others: float | None) -> str:
    """The share of the cores that other processes took, with a mark where it is more than `QUIET`."""
    return "not recorded" if others is None else f"{others:.0%}" + (" *" if others > QUIET else "")


def note_of_others(rows: Sequence[Row]) -> str:
    """What the mark means, if any of the rows has it."""
    if all(row["others"] is None or row["others"] <= QUIET for row in rows):
        return ""
    return f"\n\n* Other processes took more than {QUIET:.0%} of the cores during a run that was kept."


def throughput(result: Any) -> str:
    contestants = [
        line[name] | of_line(line) | {"program": name}
        for line in result["lines"]
        for name in ("prefopt", "trl", "naive", "tree", "padded")
        if name in line
    ]
    columns = {
        **OF_LINE,
        "program": ("program", "{}"),
        "pairs_per_s": ("pairs/s", "{:.3f}"),
        "step_s": ("s per step", "{:.2f}"),
        "useful_tokens_per_s": ("useful tokens/s", "{:.0f}"),
        "utilisation": ("utilisation", "{:.2f}"),
        "peak_gib": ("peak GiB", "{:.2f}"),
        "total_s": ("whole run, s", "{:.0f}"),
    }
    s = result["setting"]
    rates = "; ".join(f"{name}: {rate}" for name, rate in dict(map(product_rate, result["lines"])).items())
    facts = (
        f"{s['model']}, {s['dtype']}, {s['threads']} threads. Matrix products of its shapes, GFLOP/s, on {rates}. "
        "Medians of the runs."
    )
    return f"{facts}\n\n{ratios(result)}\n\n{formatted(columns, contestants)}"


def product_rate(line: Row) -> tuple[str, str]:
    """The processor of a line, and the rates of its libraries for matrix products."""
    machine = [r["machine"] for r in line["raw"]]
    names = [name for name in ("torch_mm", "onednn") if name in machine[0]]
    return line["processor"], ", ".join(f"{name} {median(m[name] for m in machine):.0f}" for name in names)


def allocator(line: Row) -> str:
    return "tcmalloc" if line["preload"] else "as installed"


def growth(result: Any) -> str:
    timed = {
        "step_s": ("CPU s per step", "{:.2f}"),
        "useful_tokens_per_s": ("useful tokens/s", "{:.0f}"),
        "completions_per_s": ("completions/s", "{:.1f}"),
        "peak_gib": ("peak GiB", "{:.2f}"),
    }
    columns: dict[str, dict[str, tuple[str, str]]] = {
        "length": {"length": ("tokens per tree", "{:,}")} | timed,
        "rows": {"row": ("tokens per row", "{:,}")} | timed,
        "completions": {"completions": ("completions per prompt", "{}"), "layout": ("layout", "{}")} | timed,
        "vocabulary": {"vocabulary": ("words", "{:,}")}
        | timed
        | {"extra_gib": ("beyond weights and Adam, GiB", "{:.2f}")},
        "records": {
            "records": ("pairs", "{:,}"),
            "total_s": ("CPU s, whole run", "{:.1f}"),
            "ms_per_record": ("ms per pair", "{:.2f}"),
            "reference_mib": ("reference store, MiB", "{:.1f}"),
            "peak_gib": ("peak GiB", "{:.2f}"),
        },
    }
    tables = [f"**{kind.capitalize()}**\n\n{formatted(columns[kind], rows)}" for kind, rows in result["tables"].items()]
    return "\n\n".join(tables)


def profile_step(result: Any) -> str:
    """The share of a step by kind, with a column for each processor."""
    kinds = [row["kind"] for row in result[0]["rows"]]
    shares = [{row["kind"]: row["share"] for row in one["rows"]} for one in result]
    columns = {"kind": ("", "{}")} | {
        str(i): (f"share of a step, {one['processor']}", "{:.0%}") for i, one in enumerate(result)
    }
    return formatted(
        columns, [{"kind": kind} | {str(i): own.get(kind) for i, own in enumerate(shares)} for kind in kinds]
    )


def precision(result: Any) -> str:
    columns = {
        "forward": ("float32", "{}"),
        "median": ("median error, nats", "{:.1e}"),
        "largest": ("largest", "{:.1e}"),
        "below_1e-4": ("below 1e-4", "{:.0%}"),
    }
    facts = (
        f"{result['completions']} completions of {result['tokens_median']:.0f} tokens (median; the longest "
        f"{result['tokens_longest']}), log-probs about {result['log_prob_median']:.0f} nats."
    )
    return f"{facts}\n\n{formatted(columns, result['rows'])}"


def data_prep(result: Any) -> str:
    columns = {
        "rows": ("pairs", "{:,}"),
        "tokens": ("tokens per pair", "{:.0f}"),
        "file_mib": ("file, MiB", "{:,}"),
        "cache_mib": ("cache, MiB", "{:,}"),
        "first_s": ("first start, s", "{:.1f}"),
        "first_cpu_s": ("its CPU time, s", "{:.1f}"),
        "second_s": ("second start, s", "{:.2f}"),
        "idle_mib": ("private memory idle, MiB", "{:,}"),
        "own_mib": ("first start", "{:,}"),
        "second_own_mib": ("second start", "{:,}"),
        "worker_mib": ("largest worker, MiB", "{:,}"),
    }
    facts = f"{result['cores']} cores, with {result['load']} runnable processes on average."
    return f"{facts}\n\n{formatted(columns, result['rows'])}"


def data_prep_spans(result: Any) -> str:
    found = result["spans"]
    columns = {
        "kind": ("the same dialogues as", "{}"),
        "kept": ("pairs", "{:,}"),
        "tokens": ("tokens per pair", "{:.0f}"),
        "given": ("tokens given inside completions", "{:,}"),
        "seconds": ("first start, s", "{:.1f}"),
        "cpu_seconds": ("its CPU time, s", "{:.1f}"),
    }
    names = {"plain": "plain pairs", "spans": "pairs with spans"}
    rows = [{"kind": title, **{key: found[f"{name}_{key}"] for key in columns if key != "kind"}}
            for name, title in names.items()]  # fmt: skip
    facts = f"{result['cores']} cores, with {result['load']} runnable processes on average."
    return f"{facts} With spans it takes {found['ratio']:.2f} × the CPU time.\n\n{formatted(columns, rows)}"


def reference_store(result: Any) -> str:
    disk, ahead = result["disk"], result["extrapolated"]
    reading = {
        "records": ("pairs", "{:,}"),
        "completion_tokens": ("completion tokens", "{:,}"),
        "mib": ("on disk, MiB", "{:.1f}"),
        "bytes_per_token": ("bytes per token", "{:.2f}"),
        "write_seconds": ("written, s", "{:.2f}"),
        "open_seconds": ("opened and verified, s", "{:.2f}"),
        "read_seconds": ("all sums read, s", "{:.2f}"),
    }
    building = {
        "model": ("model", "{}"),
        "records": ("pairs", "{:,}"),
        "tokens_fed": ("tokens fed", "{:,}"),
        "first_cpu_seconds": ("first pass, CPU s", "{:.2f}"),
        "second_seconds": ("second pass, s", "{:.2f}"),
        "tokens_per_cpu_second": ("tokens per CPU second", "{:,.0f}"),
    }
    passes = [{"model": "the world's, 100k weights"} | result["world"], {"model": "SmolLM2-135M"} | result["smollm2"]]
    words = (
        f"A first pass over {ahead['records']:,} pairs, extrapolated: {ahead['world_model_seconds']:.0f} s under the "
        f"world's model, {ahead['smollm2_hours_one_core']:.0f} hours of one core under SmolLM2 "
        f"({ahead['tokens_fed'] / 1e6:.1f}M tokens)."
    )
    size = {"mib": disk["bytes"] / 2**20}
    return f"{formatted(reading, [disk | size])}\n\n{formatted(building, passes)}\n\n{words}"


def plan_memory(result: Any) -> str:
    parts = ("weights", "gradients", "optimizer", "activations", "head", "reference", "libraries")
    columns = {
        "setting": ("setting", "{}"),
        "longest_row": ("longest row, tokens", "{:,}"),
        **{part: (part, "{:.2f}") for part in parts},
        "estimate": ("estimate, GiB", "{:.2f}"),
        "measured": ("measured, GiB", "{:.2f}"),
        "error": ("error", "{:+.1%}"),
    }
    return formatted(columns, result["rows"])


FIGURES = {
    "rss_mib": ("resident memory, MiB", "{:,.0f}"),
    "private_mib": ("private memory, MiB", "{:,.0f}"),
    "throughput": ("tokens trained, relative to the yardstick", ""),
    "throughput_as_timed": ("tokens trained per CPU second", ""),
    "whole_throughput": ("tokens of a whole cycle, relative to the yardstick", ""),
    "whole_throughput_as_timed": ("tokens of a whole cycle per CPU second", ""),
    "yardstick": ("the yardstick, ms", "{:,.1f}"),
    "files": ("open files", "{:.0f}"),
    "threads": ("threads", "{:.0f}"),
    "children": ("child processes", "{:.0f}"),
}


def soak(result: Any) -> str:
    rows = []
    for name, (words, form) in FIGURES.items():
        if name not in result["verdict"]:
            continue
        found = result["verdict"][name]
        counted = name in ("files", "threads", "children")
        change = "{:+.0f}".format(found["change"]) if counted else "{:+.1%}".format(found["change"])
        between = None if counted else f"{found['low']:+.1%} to {found['high']:+.1%}"
        bound = found["bound"]
        rows.append({
            "figure": words,
            "level": form.format(found["level"] * (1000 if name == "yardstick" else 1)) if form else None,
            "change": change,
            "between": between,
            "bound": None if bound is None else "none" if counted else f"{bound:.0%}",
            "ok": None if bound is None else "yes" if found["ok"] else "no",
        })  # fmt: skip
    columns = {
        "figure": ("", "{}"),
        "level": ("level", "{}"),
        "change": ("change over the run", "{}"),
        "between": ("95 %", "{}"),
        "bound": ("bound", "{}"),
        "ok": ("within it", "{}"),
    }
    s, samples = result["setting"], result["samples"]
    facts = (
        f"{s['minutes']:.0f} minutes of wall time, {sum(samples['cycle_s']) / 60:.0f} minutes of CPU time; "
        f"{s['cycles']} runs of {', '.join(s['losses'])}, each stopped and resumed; "
        f"the first {s['warm_up']} are left out. torch {s['torch']}, transformers {s['transformers']}."
    )
    return f"{facts}\n\n{formatted(columns, rows)}"


def generation(result: Any) -> str:
    columns = {
        "texts": ("texts", "{:,}"),
        "tokens": ("tokens", "{:,}"),
        "seconds": ("seconds, wall", "{:.1f}"),
        "processor_s": ("seconds, CPU", "{:.1f}"),
    }
    return formatted(columns, result)


def sampling(result: Any) -> str:
    speed = {
        "samples": ("samples of each prompt", "{}"),
        "own_processor_s": ("prefopt, seconds, CPU", "{:.1f}"),
        "generate_processor_s": ("`generate`, seconds, CPU", "{:.1f}"),
        "speedup": ("speed-up", "{:.2f}"),
        "others": ("cores that others took", "{:.0%}"),
    }
    errors = {
        "samples": ("samples of each prompt", "{}"),
        "ratio_deviation_token": ("sampler to scorer, a token", "{:.1e}"),
        "ratio_deviation_text": ("a text", "{:.1e}"),
        "sampler_error": ("sampler to float64, a token", "{:.1e}"),
        "scorer_error": ("scorer to float64", "{:.1e}"),
        "plain_error": ("transformers in float32 to float64", "{:.1e}"),
    }
    return f"{formatted(speed, result)}\n\nThe largest |ratio − 1|:\n\n{formatted(errors, result)}"


def reward_model(result: Any) -> str:
    columns = {
        "seed": ("seed", "{}"),
        "true_accuracy": ("true accuracy", "{:.3f}"),
        "without_end_token": ("read without the end token", "{:.3f}"),
        "seconds": ("seconds, wall", "{:.1f}"),
        "cpu_seconds": ("seconds, CPU", "{:.1f}"),
        "others": ("cores that others took", "{:.0%}"),
    }
    tried = ", ".join(f"{accuracy:.3f} at {rate}" for rate, accuracy in result["validation_accuracy"].items())
    whole, cut = result["true_accuracy"], result["without_end_token"]
    facts = (
        f"{result['pairs']:,} pairs, {result['records']} a step, one thread of {result['processor']}. True accuracy on "
        f"the validation pairs, which chose the learning rate {result['learning_rate']:g}: {tried}. The labels agree "
        f"with the exact reward on {result['label_accuracy']:.1%}."
    )
    means = (
        f"Mean of the seeds on {whole['count']} test pairs: {whole['value']:.3f} ± {whole['se']:.3f}; without the end "
        f"token {cut['value']:.3f} ± {cut['se']:.3f} (standard errors over pairs, each counted by its seeds' mean)."
    )
    return f"{facts}\n\n{formatted(columns, result['seeds'])}\n\n{means}"


def rloo(result: Any) -> str:
    columns = {
        "samples": ("samples of each prompt", "{}"),
        "program": ("program", "{}"),
        "step_s": ("seconds per step", "{:.1f}"),
        "tokens_per_s": ("sampled tokens/s of whole steps", "{:.1f}"),
        "tflop": ("TFLOP per step", "{:.2f}"),
        "peak_gib": ("peak GiB", "{:.2f}"),
        "speed_ratio": ("prefopt against TRL", "{:.2f}×"),
        "flop_ratio": ("by operations alone", "{:.2f}×"),
        "memory_ratio": ("memory against TRL", "{:.2f}×"),
        "others": ("cores that others took", "{}"),
    }
    rows = [row | {"others": share_of_others(row["others"])} for row in result["rows"]]
    s = result["setting"]
    versions = ", ".join(f"{name} {version}" for name, version in s["versions"].items())
    facts = (
        f"{s['model'].rpartition('-')[0]}, {s['dtype']}, {s['processor']}, {s['threads']} threads; a step has "
        f"{s['prompts']} prompts of {s['prompt_tokens']} tokens, each sample {s['new_tokens']}. {versions}."
    )
    return f"{facts}\n\n{formatted(columns, rows)}{note_of_others(result['rows'])}"


TABLES: dict[str, Callable[[Any], str]] = {
    "planner": planner,
    "throughput": throughput,
    "throughput/ratios": ratios,
    "growth": growth,
    "profile_step": profile_step,
    "precision": precision,
    "generation": generation,
    "sampling": sampling,
    "reward_model": reward_model,
    "rloo": rloo,
    "data_prep": data_prep,
    "data_prep_spans": data_prep_spans,
    "reference_store": reference_store,
    "plan_memory": plan_memory,
    "soak": soak,
}
