"""Reads the held-out figures of a run from its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prefopt.common.estimate import Estimate
from prefopt.errors import PrefoptError
from prefopt.evaluate.held_out import HeldOut, differences, figures, read_rows
from prefopt.losses import registry
from prefopt.plugin import Traits, traits
from prefopt.report.before_after import least_reward
from prefopt.runs.run_folder import RunFolder

RECENT = 0.1  # the last tenth of training shows how it ended


@dataclass(frozen=True)
class RunFacts:
    """The held-out figures of a run folder, under the names of `prefopt.evaluate.held_out`."""

    run: RunFolder

    @cached_property
    def name(self) -> str:
        """The name of the loss."""
        return str(self.run.config.get("loss", {}).get("name", self.run.summary.get("method", "?")))

    @cached_property
    def method(self) -> Traits:
        """The traits of the loss; those of a loss on pairs where it can no longer be loaded."""
        settings = {key: value for key, value in self.run.config.get("loss", {}).items() if key != "name"}
        try:
            return traits(registry.load(self.name, **settings))
        except (PrefoptError, TypeError, ValueError):
            return Traits()

    @cached_property
    def held_out(self) -> tuple[HeldOut, HeldOut] | None:
        """Log-probs (before, after) record by record, where the run kept them; a reward model has none."""
        rows = [] if self.scores else self.run.lines("heldout.jsonl")
        return read_rows(rows) if rows else None

    @cached_property
    def scores(self) -> Mapping[str, Any]:
        """The figures of a reward model before and after training (`prefopt.evaluate.reward_figures`); else empty."""
        found = self.run.summary.get("reward_model")
        return found if isinstance(found, dict) else {}

    @cached_property
    def before(self) -> Mapping[str, Estimate]:
        """The figures of the base model."""
        return figures(self.held_out[0]) if self.held_out else _without_errors(self.run.summary.get("before", {}))

    @cached_property
    def after(self) -> Mapping[str, Estimate]:
        """The figures of the tuned model."""
        return figures(self.held_out[1]) if self.held_out else _without_errors(self.run.summary.get("after", {}))

    @cached_property
    def change(self) -> Mapping[str, Estimate]:
        """Tuned minus base, record by record."""
        if self.held_out:
            return differences(self.held_out[1], self.held_out[0])
        a, b = self.after, self.before
        found = {name: _without_error(a[name].value - b[name].value) for name in a if name in b}
        if "accuracies/ratios" in a:
            found["accuracies/ratios"] = a["accuracies/ratios"]
        return found

    @cached_property
    def rewarded(self) -> Estimate | None:
        """The change of the reward of the model's own texts, prompt by prompt; None of a run without a reward."""
        return self._of_texts("reward_change")

    @cached_property
    def least_reward(self) -> float:
        """The smallest change of that reward that matters; nan of a run without a reward."""
        before, after = self._of_texts("reward_before"), self._of_texts("reward")
        return least_reward(before, after) if before and after else math.nan

    def _of_texts(self, name: str) -> Estimate | None:
        found = self.run.summary.get("texts", {}).get(name)
        return Estimate.from_plain(found) if isinstance(found, dict) else None

    @cached_property
    def banded(self) -> dict[str, Estimate]:
        """The figures that have bands, by their key."""
        after, written = self.run.summary.get("after", {}), self.run.summary.get("texts", {})
        found: dict[str, Estimate] = {}
        if "accuracies/ratios" in self.change:
            found["grew"] = self.change["accuracies/ratios"]
        if "rewards/margins" in after:
            found["margin"] = _without_error(after["rewards/margins"])
        if "kl" in after:
            found["kl"] = Estimate(after["kl"], after.get("kl_sem", math.nan), 0)
        if "logps_mean/chosen" in self.change:
            found["chosen"] = self.change["logps_mean/chosen"]
        if ratio := _length_ratio(written):
            found["length"] = ratio
        if "rewards/ties" in after:
            found["ties"] = _without_error(after["rewards/ties"])
        if "rewards/accuracies" in after and (recent := self._training_accuracy()) is not None:
            found["memorised"] = self._less_held_out(recent, after)
        return {key: figure for key, figure in found.items() if math.isfinite(figure.value)}

    def _training_accuracy(self) -> float | None:
        logged = [m["rewards/accuracies"] for m in self.run.metrics
                  if "learning_rate" in m and isinstance(m.get("rewards/accuracies"), int | float)]  # fmt: skip
        recent = logged[-max(1, round(RECENT * len(logged))) :]
        return sum(recent) / len(recent) if recent else None

    def _less_held_out(self, training: float, after: Mapping[str, float]) -> Estimate:
        """Return the difference; its noise is that of the held-out figure, which has far fewer pairs."""
        share, count = after["rewards/accuracies"], after.get("records", 0)
        se = math.sqrt(max(share * (1 - share), 0.0) / count) if count else math.nan
        return Estimate(training - share, se, int(count))


def _without_error(value: float) -> Estimate:
    return Estimate(float(value), math.nan, 0)


def _without_errors(values: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: _without_error(v) for name, v in values.items() if isinstance(v, int | float) and "/" in name}


def _length_ratio(written: Mapping[str, Any]) -> Estimate | None:
    """Return length after over length before; the standard error comes from the paired difference (delta method)."""
    try:
        before, longer = written["length_before"]["value"], written["longer"]
        return Estimate(1 + longer["value"] / before, (longer["se"] or math.nan) / before, longer["count"])
    except (KeyError, TypeError, ZeroDivisionError):
        return None
