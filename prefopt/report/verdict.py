"""What a run achieved, in plain words: figures against their bands, and one sentence on top."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prefopt.common.estimate import Estimate
from prefopt.evaluate.held_out import HeldOut, differences, figures, read_rows
from prefopt.plugin import Data, Traits, traits
from prefopt.report.bands import Band, State, bands_of
from prefopt.report.page import number, signed
from prefopt.runs.read import RunFolder

RECENT = 0.1  # the last tenth of training says how it ended


@dataclass(frozen=True)
class Finding:
    """One figure against its band."""

    band: Band
    figure: Estimate

    @property
    def state(self) -> State:
        """Healthy, worth a look, or trouble."""
        return self.band.state(self.figure)

    @property
    def says(self) -> str:
        """What it means and what to do; empty where all is well."""
        return self.band.says(self.figure)

    @property
    def value(self) -> str:
        """The figure with its standard error, for reading."""
        return shown(self.figure, self.band.unit)

    @property
    def healthy(self) -> str:
        """The band, for reading."""
        unit = {"%": " %", "points": " points", "x": " times", "": ""}.get(self.band.unit, f" {self.band.unit}")
        low, high = (f"{100 * v if self.band.unit in ('%', 'points') else v:g}".replace("-", "−")
                     for v in self.band.healthy)  # fmt: skip
        if math.isinf(self.band.healthy[1]):
            return f"at least {low}{unit}"
        return f"at most {high}{unit}" if math.isinf(self.band.healthy[0]) else f"{low} to {high}{unit}"


@dataclass(frozen=True)
class Verdict:
    """The judgement of a run.

    Attributes:
        state: of the whole run.
        headline: one sentence.
        details: further sentences: what the numbers are, and what to do.
        findings: every figure that was measured, against its band.
        missing: titles of the figures that were not measured.
    """

    state: State
    headline: str
    details: list[str]
    findings: list[Finding]
    missing: list[str]

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "state": self.state.name.lower(),
            "headline": self.headline,
            "details": self.details,
            "figures": {f.band.figure: {**f.figure.plain(), "state": f.state.name.lower()} for f in self.findings},
        }

    def lines(self) -> list[str]:
        """For a terminal or a log."""
        return [f"{self.state.value} {self.headline}", *(f"  - {detail}" for detail in self.details)]


@dataclass(frozen=True)
class Facts:
    """What a run folder says about held-out records, under the names of `prefopt.evaluate.held_out`."""

    run: RunFolder

    @cached_property
    def name(self) -> str:
        """The name of the loss."""
        return str(self.run.config.get("loss", {}).get("name", self.run.summary.get("method", "?")))

    @cached_property
    def method(self) -> Traits:
        """The traits of the loss; those of a loss on pairs where it can no longer be loaded."""
        from prefopt.errors import PrefoptError
        from prefopt.losses import registry

        settings = {key: value for key, value in self.run.config.get("loss", {}).items() if key != "name"}
        try:
            return traits(registry.load(self.name, **settings))
        except (PrefoptError, TypeError, ValueError):
            return Traits()

    @cached_property
    def held_out(self) -> tuple[HeldOut, HeldOut] | None:
        """Log-probs (before, after) record by record, where the run kept them."""
        rows = self.run.lines("heldout.jsonl")
        return read_rows(rows) if rows else None

    @cached_property
    def before(self) -> Mapping[str, Estimate]:
        """Figures of the base model."""
        return figures(self.held_out[0]) if self.held_out else _without_errors(self.run.summary.get("before", {}))

    @cached_property
    def after(self) -> Mapping[str, Estimate]:
        """Figures of the tuned model."""
        return figures(self.held_out[1]) if self.held_out else _without_errors(self.run.summary.get("after", {}))

    @cached_property
    def change(self) -> Mapping[str, Estimate]:
        """Tuned less base, record by record."""
        if self.held_out:
            return differences(self.held_out[1], self.held_out[0])
        a, b = self.after, self.before
        found = {name: _plain_estimate(a[name].value - b[name].value) for name in a if name in b}
        if "accuracies/ratios" in a:
            found["accuracies/ratios"] = a["accuracies/ratios"]
        return found

    @cached_property
    def judged(self) -> dict[str, Estimate]:
        """The figures that have bands, by their key."""
        after, written = self.run.summary.get("after", {}), self.run.summary.get("texts", {})
        found: dict[str, Estimate] = {}
        if "accuracies/ratios" in self.change:
            found["grew"] = self.change["accuracies/ratios"]
        if "rewards/margins" in after:
            found["margin"] = _plain_estimate(after["rewards/margins"])
        if "kl" in after:
            found["kl"] = Estimate(after["kl"], after.get("kl_sem", math.nan), 0)
        if "logps_mean/chosen" in self.change:
            found["chosen"] = self.change["logps_mean/chosen"]
        if ratio := _ratio(written):
            found["length"] = ratio
        if "rewards/ties" in after:
            found["ties"] = _plain_estimate(after["rewards/ties"])
        if "rewards/accuracies" in after and (recent := self._training_accuracy()) is not None:
            found["memorised"] = self._less_held_out(recent, after)
        return {key: figure for key, figure in found.items() if math.isfinite(figure.value)}

    def _training_accuracy(self) -> float | None:
        logged = [m["rewards/accuracies"] for m in self.run.metrics
                  if "learning_rate" in m and isinstance(m.get("rewards/accuracies"), int | float)]  # fmt: skip
        recent = logged[-max(1, round(RECENT * len(logged))) :]
        return sum(recent) / len(recent) if recent else None

    def _less_held_out(self, training: float, after: Mapping[str, float]) -> Estimate:
        """The training figure is of far more pairs; the noise is that of the held-out one."""
        share, count = after["rewards/accuracies"], after.get("records", 0)
        se = math.sqrt(max(share * (1 - share), 0.0) / count) if count else math.nan
        return Estimate(training - share, se, int(count))


def judge(run: RunFolder) -> Verdict:
    """The verdict on a run, from its files alone."""
    facts = Facts(run)
    judged = facts.judged
    bands = bands_of(facts.method)
    findings = [Finding(band, judged[key]) for key, band in bands.items() if key in judged]
    missing = [band.title for key, band in bands.items() if key not in judged]
    worst = [f for f in findings if f.state is State.BAD] + [f for f in findings if f.state is State.LOOK]
    state, headline = _headline(facts, findings)
    details = [f"{f.band.title}: {f.value}. {f.says}" for f in worst]
    if sentinels := sentinel_warnings(run):
        count = len(sentinels)
        details.append(f"While training, {count} warning{'s were' if count > 1 else ' was'} raised; see below.")
        state = State.LOOK if state is State.GOOD else state
    return Verdict(state, headline, details, findings, missing)


def _headline(facts: Facts, findings: list[Finding]) -> tuple[State, str]:
    if not facts.run.summary:
        return State.LOOK, "This run has not ended, so there is nothing to judge yet."
    if not facts.after:
        return State.LOOK, (
            "Nothing was held out, so nobody can say whether this model is better: keep some records back with "
            "data.eval_records=100 and run again."
        )
    if facts.method.needs.data is Data.DEMONSTRATIONS:
        state, sentence = _of_demonstrations(facts)
    else:
        state, sentence = _of_preferences(facts)
    trouble = [f for f in findings if f.state is State.BAD]
    if trouble and state is not State.BAD:
        state, sentence = (
            State.BAD,
            f"{sentence} But {_list([f.band.title[0].lower() + f.band.title[1:] for f in trouble])} is out of bounds.",
        )
    elif state is State.GOOD and any(f.state is State.LOOK for f in findings):
        state = State.LOOK
        sentence += " Some figures are worth a look."
    return state, sentence


def _of_demonstrations(facts: Facts) -> tuple[State, str]:
    change = facts.change.get("logps_mean/chosen")
    if change is None:
        return State.LOOK, "No held-out figure says whether the demonstrations became likelier."
    by = f"by {shown(change, 'nats a token', sign=True)}"
    if change.sign > 0:
        return State.GOOD, f"Better than the base model at the held-out demonstrations: they became likelier, {by}."
    if change.sign < 0:
        return State.BAD, f"Worse than the base model: the held-out demonstrations became less likely, {by}."
    return State.LOOK, f"A tie with the base model on held-out demonstrations ({by})."


def _of_preferences(facts: Facts) -> tuple[State, str]:
    accuracy, margin = facts.change.get("accuracies/logps"), facts.change.get("margins/logps")
    grew = facts.judged.get("grew")
    if margin is None or accuracy is None:
        return _of_labels(facts)
    if not math.isfinite(margin.se):
        return State.LOOK, (
            f"The held-out margin changed by {shown(margin, 'nats', sign=True)}; without figures of single records "
            "nobody can say whether that is more than noise."
        )
    share = f"the margin grew on {shown(grew, '%')} of the held-out pairs" if grew else "the margin grew"
    told = (f"it tells the better answer in {plain(facts.after['accuracies/logps'].value, '%')} of them, the base "
            f"model in {plain(facts.before['accuracies/logps'].value, '%')}")  # fmt: skip
    if margin.sign > 0 and accuracy.sign > 0:
        return State.GOOD, f"It learnt the preference: {share}, and {told}."
    if margin.sign > 0 and accuracy.sign < 0:
        return State.LOOK, f"Mixed: {share}, but {told}."
    if margin.sign > 0:
        return State.GOOD, (
            f"It learnt the preference: {share}. In telling the better answer it is a tie with the base model: {told}."
        )
    if margin.sign < 0:
        return State.BAD, f"It learnt the opposite: on the whole, held-out margins shrank, and {told}."
    return State.LOOK, f"A tie with the base model: held-out margins did not change beyond noise, and {told}."


def _of_labels(facts: Facts) -> tuple[State, str]:
    """Single completions: both sides move, but no record has both."""
    good, bad = facts.change.get("logps_mean/chosen"), facts.change.get("logps_mean/rejected")
    if good is None or bad is None:
        return State.LOOK, "The held-out records have one side only, so there is no preference to judge."
    gap = Estimate(good.value - bad.value, math.hypot(good.se, bad.se), good.count + bad.count)
    moved = (f"desirable answers moved by {shown(good, 'nats a token', sign=True)}, undesirable ones by "
             f"{shown(bad, 'nats a token', sign=True)}")  # fmt: skip
    if gap.sign > 0:
        return State.GOOD, f"It learnt the preference: held-out {moved}."
    if gap.sign < 0:
        return State.BAD, f"It learnt the opposite: held-out {moved}."
    return State.LOOK, f"A tie with the base model: held-out {moved}."


def sentinel_warnings(run: RunFolder) -> list[str]:
    """What the sentinels said, a line each."""
    return [f"Step {found.get('step')}: {found.get('text')}" for found in run.summary.get("sentinels", [])]


def plain(value: float, unit: str, *, bare: bool = False, sign: bool = False) -> str:
    """A value with its unit: shares as per cent, differences of shares in points."""
    write = signed if sign else number
    if unit in ("%", "points"):
        text = write(100 * value, 0 if abs(value) >= 0.02 or value == 0 else 1)
        return text if bare else f"{text} %" if unit == "%" else f"{text} points"
    digits = 2 if unit == "x" or abs(value) >= 0.1 or value == 0 else 3
    text = write(value, digits)
    if bare or not unit:
        return text
    return f"{text} times" if unit == "x" else f"{text} {unit}"


def shown(figure: Estimate, unit: str, *, sign: bool = False, bare: bool = False) -> str:
    """A value ± its standard error, with the unit unless `bare`."""
    if not math.isfinite(figure.se):
        return plain(figure.value, unit, sign=sign, bare=bare)
    scale = 100.0 if unit in ("%", "points") else 1.0
    whole = figure.se >= 0.01 and not sign  # per cent of a share; differences of shares get a digit more
    digits = int(not whole) if scale > 1 else 2 if figure.se >= 0.005 else 3
    write = signed if sign else number
    text = f"{write(scale * figure.value, digits)} ± {number(scale * figure.se, digits)}"
    return text if bare else f"{text} {'times' if unit == 'x' else unit}".rstrip()


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _plain_estimate(value: float) -> Estimate:
    return Estimate(float(value), math.nan, 0)


def _without_errors(values: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: _plain_estimate(v) for name, v in values.items() if isinstance(v, int | float) and "/" in name}


def _ratio(written: Mapping[str, Any]) -> Estimate | None:
    """Length after over length before, with its standard error by the delta method on the paired difference."""
    try:
        before, longer = written["length_before"]["value"], written["longer"]
        return Estimate(1 + longer["value"] / before, (longer["se"] or math.nan) / before, longer["count"])
    except (KeyError, TypeError, ZeroDivisionError):
        return None
