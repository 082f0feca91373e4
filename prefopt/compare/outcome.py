"""The outcome of a comparison: a standing for each row, a verdict for each pair, and the caveats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefopt.compare.rounds import MethodRuns
from prefopt.compare.spec import BASE, SFT, Comparison
from prefopt.compare.statistics import Interval, Pair
from prefopt.losses.registry import loss_class
from prefopt.plugin import traits
from prefopt.testing.kit import example


@dataclass(frozen=True, eq=False, kw_only=True)
class Standing:
    """One row of the outcome.

    Attributes:
        runs: the runs of this row.
        value: the metric with its interval; None where no run worked.
        figures: means over the same seeds as `value`.
        cost: `trials`, `runs`; of one final run `train_seconds`, `peak_memory_mib`, `tokens_trained`, `tokens_sampled`,
            `tokens_scored`, `labels` and `reward_model_seconds`; of all runs `seconds` (training and measuring),
            `job_seconds` (everything), `tokens`, `reference_seconds`, `reference_texts`, `figures_seconds`,
            `figures_texts`. nan: not measured.
        edges: on which axes the chosen setting lies at the edge of what was tried.
        reason: why a run is missing, or empty.
    """

    runs: MethodRuns
    value: Interval | None
    figures: dict[str, float]
    cost: dict[str, float]
    edges: list[str]
    reason: str

    @property
    def name(self) -> str:
        """The name of the row."""
        return self.runs.name

    @property
    def ranking(self) -> str:
        """How its loss compares completions: pairwise, pointwise or listwise; empty for the base model."""
        method = self.runs.method
        return traits(example(loss_class(method.loss))).ranking.value if method is not None else ""

    @property
    def setting(self) -> str:
        """The chosen setting as text, empty for the base model."""
        return str(self.runs.chosen) if self.runs.chosen is not None else ""


@dataclass(frozen=True, eq=False, kw_only=True)
class ComparisonOutcome:
    """Everything that the result files and the page show.

    Attributes:
        metric: the figure that decides the verdicts.
        standings: best first, the base model and the controls included.
        pairs: every two rows.
        warnings: the caveats, as sentences.
        command: the command that made it.
        facts: fingerprints, versions, machine.
    """

    comparison: Comparison
    metric: str
    standings: list[Standing]
    pairs: list[Pair]
    warnings: list[str]
    command: str
    facts: dict[str, Any]
    seconds: float

    def standing(self, name: str) -> Standing | None:
        """Return the row of this name."""
        return next((s for s in self.standings if s.name == name), None)

    @property
    def competitors(self) -> list[Standing]:
        """The methods that worked, best first, without base, SFT and controls."""
        return [s for s in self.standings if s.value and not s.runs.control and s.name not in (BASE, SFT)]

    @property
    def by_ranking(self) -> dict[str, list[Standing]]:
        """The competitors, best first, by how their losses compare completions; the kind of the best one first."""
        kinds = dict.fromkeys(s.ranking for s in self.competitors)
        return {kind: [s for s in self.competitors if s.ranking == kind] for kind in kinds}
