"""`prefopt.train` and `prefopt.compare` in Python, with progress, and results that a notebook shows."""

from __future__ import annotations

import dataclasses
import html
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from prefopt.cli.compare_options import parse
from prefopt.common.escaping_console import Console
from prefopt.common.quiet import quiet
from prefopt.compare import comparison as comparisons
from prefopt.compare.outcome import ComparisonOutcome
from prefopt.compare.progress_display import ProgressDisplay
from prefopt.compare.rounds import Rounds
from prefopt.config.grammar import value_of
from prefopt.data.tokens import TokenRecord
from prefopt.errors import UserError, nearest
from prefopt.plugin import Loss
from prefopt.report.compare_text import finding
from prefopt.report.comparison_page import final_models, looks, tried_settings, write_comparison
from prefopt.report.figures import Axes, Curve, line_figure, save, scatter_figure, styles, svg
from prefopt.report.paper import numbers, write_paper
from prefopt.runs.progress import run_progress
from prefopt.train import api

# The plot of a run shows the first of these that was logged, unless figures are named.
DEFAULT_FIGURES = ("rewards/margins", "margins/logps", "reward", "loss")
PLOTS: dict[str, tuple[Callable[..., Figure | None], Callable[..., Figure]]] = {
    "final_models": (final_models, scatter_figure),
    "tried_settings": (tried_settings, line_figure),
}


@dataclass(frozen=True)
class Plot:
    """A figure that a notebook shows as SVG; `figure` is matplotlib's."""

    figure: Figure
    summary: str

    def save(self, path: str | Path) -> None:
        """Write it as PDF or PNG, by the suffix of `path`."""
        save(self.figure, Path(path))

    def __repr__(self) -> str:
        return self.summary

    def _repr_svg_(self) -> str:
        return str(svg(self.figure, self.summary))


@dataclass(frozen=True, kw_only=True)
class TrainResult(api.Result):
    """What `prefopt.train` gives back: `prefopt.train.Result`, with a table and plots.

    Attributes:
        method: the name of the loss.
    """

    method: str

    def table(self) -> pd.DataFrame:
        """The held-out figures: base, tuned, and the change; empty where no records were held out."""
        names = [name for name in self.after if name in self.before]
        rows = [(self.before[name], self.after[name], self.after[name] - self.before[name]) for name in names]
        return pd.DataFrame(rows, index=pd.Index(names, name="held out"), columns=["base", "tuned", "change"])

    def log(self) -> pd.DataFrame:
        """What was logged while training, by step."""
        rows = [entry for entry in self.trainer.state.log_history if "loss" in entry]
        return pd.DataFrame(rows).set_index("step") if rows else pd.DataFrame()

    def plot(self, *figures: str) -> Plot:
        """Draw logged figures by step; without names the margin of rewards, the reward or the loss.

        Raises:
            UserError: no such figure was logged.
        """
        log = self.log()
        names = figures or tuple(name for name in DEFAULT_FIGURES if name in log)[:1]
        for name in names:
            if name not in log:
                raise UserError(f"{name} was not logged{nearest(name, list(log))}; there is {', '.join(log)}")
        if not names:
            raise UserError("nothing was logged: the run was shorter than trainer.logging_steps")
        curves = [Curve(name, known.index.tolist(), known.tolist()) for name in names for known in [log[name].dropna()]]
        summary = f"{self.method}: " + ", ".join(f"{c.label} {c.y[0]:.3g} to {c.y[-1]:.3g}" for c in curves)
        return Plot(line_figure(curves, styles(names), Axes(x="step", y="", title=self.method)), summary)

    def __repr__(self) -> str:
        state = self.trainer.state
        head = f"{self.method}: {state.global_step} steps in {self.seconds:.1f} s"
        return f"{head}\n{self.table().to_string(float_format='{:z.4f}'.format)}" if self.after else head

    def _repr_html_(self) -> str:
        head = html.escape(repr(self).splitlines()[0])
        return f"<p>{head}</p>{self.table().to_html(float_format='{:z.4f}'.format)}"


@dataclass(frozen=True, eq=False)
class CompareResult:
    """What `prefopt.compare` gives back.

    Attributes:
        outcome: standings, verdicts and caveats.
        folder: with `report.html`, `results.json` and `paper/`.
    """

    outcome: ComparisonOutcome
    folder: Path

    def table(self) -> pd.DataFrame:
        """A row for each method, the best first: every number as it is, and the verdict against the best."""
        return pd.DataFrame([numbers(self.outcome, s) for s in self.outcome.standings]).set_index("method")

    def verdicts(self) -> pd.DataFrame:
        """A row for each pair of methods."""
        return pd.DataFrame([dataclasses.asdict(pair) for pair in self.outcome.pairs])

    def plot(self, name: str = "final_models") -> Plot:
        """Draw the final models (the figure against the KL), or every setting that was tried (`tried_settings`).

        Raises:
            UserError: there is no such plot, or too little to draw.
        """
        if name not in PLOTS:
            raise UserError(f"there is no plot {name!r}{nearest(name, list(PLOTS))}; choose from: {', '.join(PLOTS)}")
        make, draw = PLOTS[name]
        figure = make(self.outcome, looks(self.outcome), draw)
        if figure is None:
            raise UserError(f"{name}: there is too little to draw; see the caveats: {'; '.join(self.outcome.warnings)}")
        return Plot(figure, " ".join(finding(self.outcome)))

    def __repr__(self) -> str:
        caveats = [f"caveat: {warning}" for warning in self.outcome.warnings]
        return "\n".join([*finding(self.outcome), *caveats, f"report: {self.folder / 'report.html'}"])

    def _repr_html_(self) -> str:
        shown = self.table()[["value", "low", "high", "kl", "against_best", "setting"]]
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in repr(self).splitlines())
        return f"{lines}{shown.to_html(float_format='{:z.3f}'.format)}"


def train(
    model: Any,
    loss: Loss,
    records: Sequence[TokenRecord],
    *,
    output_dir: str | Path,
    display: str = "auto",
    **settings: Any,
) -> TrainResult:
    """Tune `model` in place with `loss` on `records`, and show the progress.

    Args:
        model, loss, records, output_dir, settings: as `prefopt.train.api.train` takes them.
        display: rich (a live bar), plain (lines), quiet, or auto: rich in a terminal and in a notebook with ipywidgets.

    Raises:
        PrefoptError: as there.
    """
    method = type(loss).__name__
    progress = run_progress(display, method)
    callbacks = [*settings.pop("callbacks", ()), progress]
    with progress.reference() as advance:
        shown = {"progress": advance, **settings}
        result = api.train(model, loss, records, output_dir=output_dir, callbacks=callbacks, **shown)
    return TrainResult(method=method, **{f.name: getattr(result, f.name) for f in dataclasses.fields(result)})


def compare(
    losses: Sequence[str],
    options: Mapping[str, Any] | None = None,
    *,
    output_dir: str | Path = "runs/compare",
    display: str = "auto",
    workers: int | None = None,
) -> CompareResult:
    """Compare methods on the same data with equal budgets, as `prefopt compare` does; a second call resumes.

    Args:
        losses: names of the menu; `A@rollouts` is the loss A on the policy's own samples.
        options: those of `prefopt compare` and `prefopt train` by name, such as {"data": "pairs.jsonl", "seeds": 3,
            "trainer.max_steps": 96, "methods.simpo.loss.beta": 2.5}.
        output_dir: of the results, the report and the jobs.
        display: quiet, or anything else: a line for each job.
        workers: processes; 0: this one; None: one per core. More than 0 import the script that calls again: it calls
            under `if __name__ == "__main__"`.

    Raises:
        UserError: an option that cannot be used.
        PrefoptError: no run worked.
    """
    given = {"losses": list(losses), **(options or {}), "output_dir": str(output_dir)}
    for name in {*(options or {})} & {"losses", "output_dir", "workers", "launcher", "only"}:
        raise UserError(f"options: {name} is an argument of prefopt.compare, or of the command line alone")
    words = [f"{name}={value_of(value)}" for name, value in given.items()]
    _, comparison = parse(words)
    rounds, folder = Rounds(comparison), Path(output_dir)
    count = comparisons.default_workers(rounds) if workers is None else workers
    command = shlex.join(["prefopt", "compare", *words])
    quiet()
    bar = ProgressDisplay(Console(highlight=False), (rounds.trial_count, rounds.final_count), count)
    with nullcontext() if display == "quiet" else bar as progress:
        outcome = comparisons.compare(rounds, folder, workers=count, command=command, progress=progress)
    write_comparison(folder, outcome)
    write_paper(folder, outcome)
    return CompareResult(outcome, folder)
