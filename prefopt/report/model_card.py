"""Writes the model card of an exported folder from the files of the run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prefopt.common.estimate import Estimate
from prefopt.data.world_names import WORLD_MODELS
from prefopt.errors import UserError
from prefopt.losses import registry
from prefopt.models.export_folder import ExportCheck
from prefopt.report.before_after import BeforeAfter, reward_model_rows
from prefopt.report.catalogue import card as catalogue_card
from prefopt.report.formatting import number, signed
from prefopt.report.page import render
from prefopt.report.run_facts import RunFacts
from prefopt.runs.run_folder import RunFolder
from prefopt.runs.run_path import CONFIG

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FIGURES = {
    "accuracies/logps": "pairs whose chosen answer is the likelier, %",
    "margins/logps": "margin of chosen over rejected, nats",
    "logps_mean/chosen": "log-prob of chosen answers, nats per token",
    "logps_mean/rejected": "log-prob of rejected answers, nats per token",
}
PERCENT = ("accuracies/",)


@dataclass(frozen=True)
class Stage:
    """One of the runs that led to the model."""

    method: str
    model: str  # what it started from
    data: str
    steps: int


def model_card(run: RunFolder, *, dtype: str, check: ExportCheck, licence: str | None = None) -> str:
    """Return the card as Markdown, with the hub's front matter.

    Args:
        run: the run.
        dtype: the dtype of the exported weights.
        check: the result of loading the export in a fresh process.
        licence: an SPDX id; None leaves a gap for the user to fill.
    """
    facts, config = RunFacts(run), run.config
    loss = dict(config.get("loss", {}))
    name = str(loss.pop("name", facts.name))
    stages = lineage(run)
    counts = run.manifest.get("data", {}).get("counts", {})
    return render(
        "card.md.jinja",
        escape=False,  # Markdown; values from outside go through the filter `plain`
        front=_front(stages, config, name, licence, scores=bool(facts.scores)),
        scored=reward_model_rows(facts.scores),
        name=name,
        method=_method(name, loss),
        settings=loss,
        stages=stages,
        base=stages[0].model,
        data=config.get("data", {}),
        counts={
            name: int(counts[key])
            for key, name in {"rows": "rows read", "train": "records to train on", "eval": "held out"}.items()
            if key in counts
        },
        schema=run.manifest.get("data", {}).get("schema"),
        rejections=_reasons(run),
        rows=results(facts),
        held_out=len(facts.held_out[0].ids) if facts.held_out else run.summary.get("counts", {}).get("eval", 0),
        kl=_kl(run.summary.get("after", {})),
        peft=config.get("peft", {}),
        trainer=config.get("trainer", {}),
        batch=config.get("batch", {}),
        seed=config.get("seed"),
        steps=run.summary.get("steps"),
        versions=run.manifest.get("versions", {}),
        dtype=dtype,
        check=check,
        licence=licence,
    )


def lineage(run: RunFolder) -> list[Stage]:
    """Return the runs that led to the model, in order: a run that started from another run's model follows it."""
    found: list[Stage] = []
    at: RunFolder | None = run
    while at is not None and len(found) < 16:
        config = at.located
        model, data = str(config.get("model", {}).get("path", "?")), str(config.get("data", {}).get("path"))
        name = str(config.get("loss", {}).get("name", "?"))
        found.insert(0, Stage(name, model, data, int(at.summary.get("steps", 0))))
        below = Path(model).parent
        at = RunFolder(below) if Path(model).is_dir() and (below / CONFIG).is_file() else None
    return found


def results(facts: RunFacts) -> list[BeforeAfter]:
    """Tabulate base and tuned model on held-out records, with standard errors where the run kept each record."""
    rows = []
    for name, title in FIGURES.items():
        if name in facts.before and name in facts.after:
            scale = 100.0 if name.startswith(PERCENT) else 1.0
            base, tuned = (_shown(e.get(name), scale) for e in (facts.before, facts.after))
            rows.append(BeforeAfter(title, base, tuned, _shown(facts.change.get(name), scale, sign=True)))
    grew = facts.change.get("accuracies/ratios")
    if grew is not None:
        rows.append(BeforeAfter("pairs whose margin grew, %", "–", _shown(grew, 100.0), "–"))
    return rows


def _shown(figure: Estimate | None, scale: float, *, sign: bool = False) -> str:
    if figure is None:
        return "–"
    digits = 1 if scale == 100.0 else 3
    text = (signed if sign else number)(figure.value * scale, digits)
    return f"{text} ± {number(figure.se * scale, digits)}" if math.isfinite(figure.se) else text


def _kl(after: Mapping[str, Any]) -> str | None:
    if "kl" not in after:
        return None
    return f"{number(after['kl'])} ± {number(after.get('kl_sem', math.nan))}"


def _method(name: str, settings: Mapping[str, Any]) -> dict[str, str] | None:
    """Return summary, formula and paper of a plugin; None if it is no longer installed."""
    try:
        cls: Any = registry.loss_class(name)
        parts = catalogue_card(cls)
    except (UserError, ValueError):
        return None
    return {"summary": parts.summary, "formula": parts.formula, "paper": str(getattr(cls, "paper", ""))}


def _front(stages: list[Stage], config: Mapping[str, Any], name: str, licence: str | None, *, scores: bool) -> str:
    """Return the hub's front matter: only what is known."""
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if scores else "text-generation",
        "tags": ["prefopt", "preference-optimization", name],
    }
    if licence:
        front["license"] = licence
    base = stages[0].model
    if HUB_ID.fullmatch(base) and not Path(base).exists() and base not in WORLD_MODELS:
        front["base_model"] = base
    sets = {s.data for s in stages if HUB_ID.fullmatch(s.data) and not Path(s.data).exists()}
    if sets:
        front["datasets"] = sorted(sets)
    text: str = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return text.strip()


def _reasons(run: RunFolder) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in run.lines("rejections.jsonl"):
        reason = str(row.get("reason", "?"))
        counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items()))
