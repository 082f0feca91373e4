"""Judges a run: checks its figures against their bands, and sums them up in one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from prefopt.common.estimate import Estimate
from prefopt.common.smallest_effects import DEVIATIONS, MARGIN, PER_TOKEN, SHARE, Verdict
from prefopt.plugin import Data
from prefopt.report.bands import Band, State, bands_of
from prefopt.report.formatting import listed, with_error, with_unit
from prefopt.report.run_facts import RunFacts
from prefopt.runs.run_folder import RunFolder

_LEAST_PER_TOKEN = f"at least {PER_TOKEN:g} nats per token matter"


@dataclass(frozen=True)
class BandCheck:
    """One figure checked against its band."""

    band: Band
    figure: Estimate

    @property
    def state(self) -> State:
        """Whether it is healthy, worth a look, or trouble."""
        return self.band.state(self.figure)

    @property
    def advice(self) -> str:
        """What it means and what to do; empty if healthy."""
        return self.band.advice(self.figure)

    @property
    def value(self) -> str:
        """The figure with its standard error, as text."""
        return with_error(self.figure, self.band.unit)

    @property
    def healthy(self) -> str:
        """The healthy band, as text."""
        unit = {"%": " %", "points": " points", "x": " times", "": ""}.get(self.band.unit, f" {self.band.unit}")
        low, high = (f"{100 * v if self.band.unit in ('%', 'points') else v:g}".replace("-", "−")
                     for v in self.band.healthy)  # fmt: skip
        if math.isinf(self.band.healthy[1]):
            return f"at least {low}{unit}"
        return f"at most {high}{unit}" if math.isinf(self.band.healthy[0]) else f"{low} to {high}{unit}"


@dataclass(frozen=True)
class RunVerdict:
    """The judgement of a run.

    Attributes:
        state: the state of the whole run.
        headline: one sentence.
        details: further sentences: the numbers, and what to do.
        findings: every measured figure, checked against its band.
        missing: the titles of the figures that were not measured.
    """

    state: State
    headline: str
    details: list[str]
    findings: list[BandCheck]
    missing: list[str]

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "state": self.state.name.lower(),
            "headline": self.headline,
            "details": self.details,
            "figures": {f.band.figure: {**f.figure.plain(), "state": f.state.name.lower()} for f in self.findings},
        }

    def lines(self) -> list[str]:
        """Return it as lines for a terminal or a log."""
        return [f"{self.state.value} {self.headline}", *(f"  - {detail}" for detail in self.details)]


def judge(run: RunFolder) -> RunVerdict:
    """Judge a run from its files alone."""
    facts = RunFacts(run)
    judged = facts.banded
    bands = bands_of(facts.method)
    findings = [BandCheck(band, judged[key]) for key, band in bands.items() if key in judged]
    missing = [band.title for key, band in bands.items() if key not in judged]
    worst = [f for f in findings if f.state is State.BAD] + [f for f in findings if f.state is State.LOOK]
    state, headline = _headline(facts, findings)
    details = [f"{f.band.title}: {f.value}. {f.advice}" for f in worst]
    if sentinels := sentinel_warnings(run):
        count = len(sentinels)
        details.append(f"{count} warning{'s were' if count > 1 else ' was'} raised during training; see below.")
        state = State.LOOK if state is State.GOOD else state
    return RunVerdict(state, headline, details, findings, missing)


def _headline(facts: RunFacts, findings: list[BandCheck]) -> tuple[State, str]:
    if not facts.run.summary:
        return State.LOOK, "This run has not ended, so there is nothing to judge yet."
    if facts.rewarded is not None:
        return _of_reward(facts, facts.rewarded)
    if not facts.after:
        counts = facts.run.summary.get("counts", {})
        if counts.get("eval"):
            return State.LOOK, (
                f"Nothing could be measured on the {counts['eval']:,} held-out records: it takes two different "
                "prompts, evaluation.kl_prompts of 2 or more, and a model with an end token."
            )
        records = int(counts.get("train", 500))
        return State.LOOK, (
            "No records were held out, so nothing shows whether this model is better: set "
            f"data.eval_records={min(100, max(1, records // 5))} or data.eval_path=FILE, and run again."
        )
    if facts.method.needs.reward_model:
        state, sentence = _of_reward_model(facts)
    elif facts.method.needs.data is Data.DEMONSTRATIONS:
        state, sentence = _of_demonstrations(facts)
    else:
        state, sentence = _of_preferences(facts)
    trouble = [f for f in findings if f.state is State.BAD]
    if trouble and state is not State.BAD:
        titles = listed([f.band.title[0].lower() + f.band.title[1:] for f in trouble])
        state, sentence = State.BAD, f"{sentence} But {titles} {'is' if len(trouble) == 1 else 'are'} out of bounds."
    elif state is State.GOOD and any(f.state is State.LOOK for f in findings):
        state = State.LOOK
        sentence += " Some figures are worth a look."
    return state, sentence


def _of_reward(facts: RunFacts, change: Estimate) -> tuple[State, str]:
    by = f"by {with_error(change, '', sign=True)} behind held-out prompts"
    found = change.verdict(facts.least_reward)
    if found == "better":
        return State.GOOD, f"Better than the base model by the reward: that of its own texts rose, {by}."
    if found == "worse":
        return State.BAD, f"Worse than the base model by the reward: that of its own texts fell, {by}."
    least = f"at least {DEVIATIONS:g} standard deviations matter"
    return State.LOOK, f"{_undecided(found)} by the reward of its own texts, which changed {by} ({least})."


def _undecided(found: Verdict, than: str = "the base model") -> str:
    return f"A tie with {than}" if found == "tie" else f"It cannot be told from {than}"


def _of_reward_model(facts: RunFacts) -> tuple[State, str]:
    found = facts.scores.get("after", {}).get("accuracy")
    if not isinstance(found, dict) or found.get("value") is None:
        return State.LOOK, "The held-out records have one side only, so nothing shows whether it ranks answers right."
    accuracy = Estimate.from_plain(found)
    ranks = f"it ranks the better answer higher in {with_error(accuracy, '%')} of the held-out pairs"
    state, learnt = {
        "better": (State.GOOD, "The reward model learnt the preference"),
        "worse": (State.BAD, "The reward model learnt the opposite"),
        "tie": (State.LOOK, "The reward model is no better than chance"),
        "cannot_tell": (State.LOOK, "The reward model cannot be told from chance"),
    }[Estimate(accuracy.value - 0.5, accuracy.se, accuracy.count).verdict(SHARE)]
    return state, f"{learnt}: {ranks}."


def _of_demonstrations(facts: RunFacts) -> tuple[State, str]:
    change = facts.change.get("logps_mean/chosen")
    if change is None:
        return State.LOOK, "No held-out figure shows whether the demonstrations became likelier."
    by = f"by {with_error(change, 'nats per token', sign=True)}"
    found = change.verdict(PER_TOKEN)
    if found == "better":
        return State.GOOD, f"Better than the base model: the held-out demonstrations became likelier, {by}."
    if found == "worse":
        return State.BAD, f"Worse than the base model: the held-out demonstrations became less likely, {by}."
    return State.LOOK, f"{_undecided(found)} on held-out demonstrations, which changed {by} ({_LEAST_PER_TOKEN})."


def _of_preferences(facts: RunFacts) -> tuple[State, str]:
    accuracy, margin = facts.change.get("accuracies/logps"), facts.change.get("margins/logps")
    grew = facts.banded.get("grew")
    if margin is None or accuracy is None:
        return _of_labels(facts)
    changed = f"held-out margins changed by {with_error(margin, 'nats', sign=True)}"
    if not math.isfinite(margin.se):
        return State.LOOK, f"{changed.capitalize()}; without record-by-record figures nothing shows whether by chance."
    share = f"the margin grew on {with_error(grew, '%')} of the held-out pairs" if grew else "the margin grew"
    ranks = (f"it ranks the better answer higher in {with_unit(facts.after['accuracies/logps'].value, '%')} of them, "
             f"the base model in {with_unit(facts.before['accuracies/logps'].value, '%')}")  # fmt: skip
    found, ranked = margin.verdict(MARGIN), accuracy.verdict(SHARE)
    if found == "worse":
        return State.BAD, f"It learnt the opposite: held-out margins shrank on average, and {ranks}."
    if found != "better":
        return State.LOOK, f"{_undecided(found)}: {changed}, where at least {MARGIN:g} matter, and {ranks}."
    if ranked == "worse":
        return State.LOOK, f"Mixed: {share}, but {ranks}."
    if ranked == "better":
        return State.GOOD, f"It learnt the preference: {share}, and {ranks}."
    return State.GOOD, f"It learnt the preference: {share}. {_undecided(ranked)} in ranking the better answer: {ranks}."


def _of_labels(facts: RunFacts) -> tuple[State, str]:
    """Judge single completions, where both sides move but no record has both."""
    good, bad = facts.change.get("logps_mean/chosen"), facts.change.get("logps_mean/rejected")
    if good is None or bad is None:
        return State.LOOK, "The held-out records have one side only, so there is no preference to judge."
    gap = Estimate(good.value - bad.value, math.hypot(good.se, bad.se), good.count + bad.count)
    moved = (f"desirable answers moved by {with_error(good, 'nats per token', sign=True)}, undesirable ones by "
             f"{with_error(bad, 'nats per token', sign=True)}")  # fmt: skip
    found = gap.verdict(PER_TOKEN)
    if found == "better":
        return State.GOOD, f"It learnt the preference: held-out {moved}."
    if found == "worse":
        return State.BAD, f"It learnt the opposite: held-out {moved}."
    return State.LOOK, f"{_undecided(found)}: held-out {moved} ({_LEAST_PER_TOKEN})."


def sentinel_warnings(run: RunFolder) -> list[str]:
    """Return the warnings of the sentinels, one line each."""
    return [f"Step {found.get('step')}: {found.get('text')}" for found in run.summary.get("sentinels", [])]
