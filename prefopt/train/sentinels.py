"""What a run is watched for while it trains: signs, in the figures that it logs, that its numbers mean something else
than they seem to. Each is told once, in plain words; it can end the run."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from prefopt.common.option_limits import Limits, at_least

logger = logging.getLogger(__name__)

PREFIX = "sentinels/"
TIE = 1e-5  # a mean reward margin below it is rounding: policy and reference are computed in other packings
SAYS = {
    "kl": "the model is {value:.3g} nats a text away from its start: what it writes has left what the preferences were "
    "collected on; raise the loss's regularisation (beta), or lower trainer.learning_rate",
    "chosen_fall": "the chosen texts lost {value:.2f} nats a token since training began: the model unlearns what it is "
    "shown as good; lower trainer.learning_rate, or take a loss with an SFT term (orpo, cpo, mix)",
    "easy": "the last {pairs} pairs were all ranked right, {value:.0f} steps after the start: something tells the "
    "sides apart, such as a length, a template or a mark; `prefopt data check` looks for it",
    "margin": "the mean reward margin is {value:.3g}: most pairs pull no more, and the others pull the model far away; "
    "raise the loss's regularisation, or stop earlier",
    "length": "sampled texts have {now:.4g} tokens on average, {start:.4g} at the start: the loss rewards {what}; "
    "compare with loss=simpo, r_dpo or ld_dpo",
    "ties": "for {value:.0f} steps both sides of every pair had one reward: nothing is learnt; is the learning rate 0, "
    "are the trained weights frozen, or are both sides one text?",
}
Sign = tuple[str, float, float, Mapping[str, Any]]  # name, value, bound, what else its text says


@dataclass(frozen=True, kw_only=True)
class SentinelConfig:
    """The bounds. The defaults of the Hydra group `sentinels`; null switches one off."""

    LIMITS: ClassVar[Limits] = {
        "kl": at_least(0), "chosen_fall": at_least(0), "easy_records": at_least(1), "easy_steps": at_least(0),
        "margin": at_least(0), "length_ratio": at_least(1), "tie_steps": at_least(1),
    }  # fmt: skip

    stop: bool = False  # end the run at the first warning, after a checkpoint (exit code 3)
    measure: bool = False  # sample texts at evaluations in training too, for `kl` and `length_ratio`; else at the end
    kl: float | None = 30.0  # nats a text: KL to the start
    chosen_fall: float | None = 1.0  # nats a token: how far the chosen side may fall below its first logged value
    easy_records: int | None = 128  # so many records on end, all ranked right …
    easy_steps: int = 20  # … within the first so many steps
    margin: float | None = 50.0  # mean reward margin: a sigmoid's gradient is gone at 20
    length_ratio: float | None = 2.0  # how many times longer or shorter than at the start sampled texts may become
    tie_steps: int | None = 10  # so many steps on end whose pairs' sides differ in reward by rounding at most


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One warning: `value` went over `bound` at `step`."""

    sentinel: str
    step: int
    value: float
    bound: float
    text: str

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


class Sentinels:
    """Looks at every log of a run, in order.

    Args:
        config: the bounds.
        say: called with the line of each finding; by default a warning of this module's logger.
    """

    def __init__(self, config: SentinelConfig | None = None, say: Callable[[str], None] = logger.warning) -> None:
        self.config = config or SentinelConfig()
        self.say = say
        self.findings: list[Alert] = []
        self._records = 1  # of a step
        self._step = 0  # of the last training log
        self._chosen: float | None = None  # nats a token, first logged
        self._easy = self._tied = 0  # records and steps on end

    def begin(self, *, records: int, history: Iterable[Mapping[str, float]] = ()) -> None:
        """Training begins, in steps of so many records; `history` is what it logged before it was interrupted, of
        which nothing is told again."""
        self._records = records
        for logs in history:
            self.findings += self._look(int(logs.get("step", 0)), logs)

    def look(self, step: int, logs: Mapping[str, float]) -> dict[str, float]:
        """What the figures of one log give away: `{"sentinels/NAME": value}`, each name once in a run."""
        found = self._look(step, logs)
        self.findings += found
        for finding in found:
            self.say(f"warning: step {finding.step}: {finding.text}")
        return {PREFIX + finding.sentinel: finding.value for finding in found}

    def _look(self, step: int, logs: Mapping[str, float]) -> list[Alert]:
        told = {finding.sentinel for finding in self.findings}
        figures = {k: v for k, v in logs.items() if isinstance(v, int | float) and math.isfinite(v)}
        signs: list[Sign] = []
        if "learning_rate" in figures and step > self._step:
            signs += self._trained(step, figures)
            self._step = step
        signs += self._measured(figures)
        return [
            Alert(sentinel=name, step=step, value=value, bound=bound, text=SAYS[name].format(value=value, **more))
            for name, value, bound, more in signs
            if name not in told
        ]

    def _trained(self, step: int, figures: Mapping[str, float]) -> Iterator[Sign]:
        """Signs in the figures of the steps since the last log."""
        bounds, steps = self.config, step - self._step
        chosen = figures.get("logps_mean/chosen")
        if chosen is not None and bounds.chosen_fall is not None:
            self._chosen = chosen if self._chosen is None else self._chosen
            if (fall := self._chosen - chosen) > bounds.chosen_fall:
                yield "chosen_fall", fall, bounds.chosen_fall, {}
        accuracy = figures.get("rewards/accuracies")
        if accuracy is not None and bounds.easy_records is not None:
            self._easy = self._easy + steps * self._records if accuracy == 1.0 else 0
            if step <= bounds.easy_steps and self._easy >= bounds.easy_records:
                yield "easy", float(step), float(bounds.easy_steps), {"pairs": self._easy}
        margin = figures.get("rewards/margins")
        if margin is not None and bounds.margin is not None and abs(margin) > bounds.margin:
            yield "margin", margin, bounds.margin, {}
        ties = figures.get("rewards/ties")
        if ties is not None and bounds.tie_steps is not None:
            level = ties == 1.0 or (margin is not None and abs(margin) < TIE)
            self._tied = self._tied + steps if level else 0
            if self._tied >= bounds.tie_steps:
                yield "ties", float(self._tied), float(bounds.tie_steps), {}

    def _measured(self, figures: Mapping[str, float]) -> Iterator[Sign]:
        """Signs in the figures of an evaluation."""
        bounds = self.config
        kl = figures.get("eval_kl")
        if kl is not None and bounds.kl is not None and kl > bounds.kl:
            yield "kl", kl, bounds.kl, {}
        now, start = figures.get("eval_sampled_length"), figures.get("eval_sampled_length_before")
        if now is not None and start and bounds.length_ratio is not None:
            ratio = now / start
            if not 1 / bounds.length_ratio <= ratio <= bounds.length_ratio:
                what = "length" if ratio > 1 else "brevity"
                yield "length", ratio, bounds.length_ratio, {"now": now, "start": start, "what": what}
