"""Holds the settings of the Hydra group `rollout`: how samples are drawn and labelled."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import ClassVar

from prefopt.common.option_limits import Limits, above, at_least, check_limits, one_of
from prefopt.errors import UserError
from prefopt.plugin import Data, Loss, traits
from prefopt.train.sources.labels import LabelRule, check_samples

logger = logging.getLogger(__name__)

CORRECTIONS = ("token_clip", "sequence_mask")


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How samples are drawn and labelled. The defaults of the Hydra group `rollout`."""

    LIMITS: ClassVar[Limits] = {
        "num_generations": at_least(1), "max_new_tokens": at_least(1), "updates": at_least(1),
        "temperature": above(0), "label_temperature": above(0), "missing_end_penalty": at_least(0),
        "sampler": one_of("own", "vllm"), "correction": one_of(*CORRECTIONS), "correction_limit": above(1),
        "max_stale": at_least(0),
    }  # fmt: skip

    num_generations: int = 4  # samples of each prompt; a step has batch.records prompts
    max_new_tokens: int = 128  # a text that is longer is cut off, without an end token
    temperature: float = 1.0  # of the samples; for on-policy losses also of the policy that they train
    missing_end_penalty: float = 0.0  # taken off the reward of a text that was cut off
    label: LabelRule = (
        LabelRule.BT
    )  # how two rewards become a preference, for losses on pairs and labels: BT, SOFT or ARGMAX
    label_temperature: float = 1.0  # of BT and SOFT, in units of reward
    allow_argmax: bool = False  # ARGMAX also for a loss that then has no finite optimum
    updates: int | None = None  # steps that learn from the same samples; None: as many as the loss declares, most 1
    sampler: str = "own"  # own: the engine of this process; vllm: a vLLM server at rollout.url
    url: str | None = None  # of the server, such as http://localhost:8000
    correction: str | None = None  # of ratios for the server's numerics: token_clip or sequence_mask
    correction_limit: float = 3.0  # largest ratio of the policy's probability to the server's, above 1
    max_stale: int = 0  # rollouts that the server's weights may be behind the policy

    def settled(self, loss: Loss) -> RolloutConfig:
        """With the number of updates that a loss declares, where none is given."""
        return self if self.updates is not None else dataclasses.replace(self, updates=traits(loss).updates)

    def check(self, loss: Loss) -> None:
        """Raise UserError for a value that cannot be used with a loss on samples that are drawn at every step."""
        self.check_samples(loss)
        self._check_sampler(loss)
        if loss.needs.mismatched or loss.needs.control_text:
            what = "completions of other prompts" if loss.needs.mismatched else "a control text before each completion"
            raise UserError(f"this loss needs {what}, which samples do not have: choose another one for "
                            "source=rollouts")  # fmt: skip

    def check_samples(self, loss: Loss) -> None:
        """Raise UserError for a value that samples cannot be drawn or labelled with for a loss."""
        check_limits(self.LIMITS, self, "rollout")
        if self.missing_end_penalty and not traits(loss).scores_cut_off:
            raise UserError(f"rollout.missing_end_penalty={self.missing_end_penalty}: this loss does not read the "
                            "scores of texts that were cut off: leave it out, or set loss.cut_off=SCORE")  # fmt: skip
        if loss.needs.reward_model:
            raise UserError("this loss trains a reward model, which writes no texts: leave source out")
        check_samples(loss.needs.data, self.num_generations)
        least = 4 if loss.needs.data is Data.LISTS else 2
        if loss.needs.opponent and (self.num_generations < least or self.num_generations % 2):
            raise UserError(f"rollout.num_generations={self.num_generations} must be even and at least {least}: half "
                            "of a prompt's samples are an opponent's")  # fmt: skip
        self._check_labels(loss)

    def _check_sampler(self, loss: Loss) -> None:
        """Another sampler has other numerics, which a loss that learns from ratios must correct for."""
        given = [name for name in ("url", "correction") if getattr(self, name) is not None]
        if self.sampler == "own":
            if given or self.max_stale:
                name = given[0] if given else "max_stale"
                raise UserError(f"rollout.{name} is of another sampler: add rollout.sampler=vllm, or leave it out")
            return
        if self.url is None:
            raise UserError("rollout.sampler=vllm needs rollout.url, such as http://localhost:8000")
        if loss.needs.opponent:
            raise UserError("this loss needs texts of an opponent, which the server does not write: leave out "
                            "rollout.sampler=vllm")  # fmt: skip
        if loss.needs.on_policy and self.correction is None:
            raise UserError("this loss learns from importance ratios, and the server's numerics are not the trainer's: "
                            f"choose rollout.correction={' or '.join(CORRECTIONS)}")  # fmt: skip
        if loss.needs.on_policy and self.temperature != 1:
            raise UserError(f"rollout.temperature={self.temperature}: the server returns log-probs at temperature 1, "
                            "and ratios are of the distribution drawn from: leave it at 1")  # fmt: skip

    def _check_labels(self, loss: Loss) -> None:
        """Labels that are certain drive losses without a finite optimum ever further."""
        labelled = loss.needs.data in (Data.PAIRS, Data.UNPAIRED)
        if not labelled or self.label is not LabelRule.ARGMAX or traits(loss).finite_optimum:
            return
        about = "rollout.label=ARGMAX: this loss has no finite optimum where one text always wins"
        if not self.allow_argmax:
            raise UserError(f"{about}, so the policy drifts for as long as it is trained: choose BT or SOFT, or "
                            "rollout.allow_argmax=true and few steps")  # fmt: skip
        logger.warning("%s: the policy drifts for as long as it is trained", about)
