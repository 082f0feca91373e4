"""One optimizer step's forward and backward: the micro-batches one by one, or through the gradient cache.

It knows no loss by name: it reads `needs`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import TrainingArguments

from prefopt.engine.forward import Options
from prefopt.engine.head import Reference
from prefopt.engine.policy import Policy
from prefopt.engine.router import RouterLoad
from prefopt.errors import UserError
from prefopt.plugin import BESIDE_REFERENCE, PERTURBED, Logps, Loss, State, Vocab
from prefopt.train.arguments import autocast, computed_in
from prefopt.train.batches import Share, Work
from prefopt.train.checks import (
    at_reference,
    check_drawn,
    check_finite,
    check_first_batch,
    check_gradient,
    check_output,
)
from prefopt.train.examples import BatchLoss, Facts, examples_of
from prefopt.train.gradient_cache import Whole, carried
from prefopt.train.metrics import Tally, tally_batch


@dataclass(eq=False)
class Step:
    """Makes steps with a loss on a policy.

    Attributes:
        policy: what is trained.
        wrapped: the same in whatever wraps it (DDP, FSDP2).
        loss: the plugin.
        args: precision, device and processes.
        accelerator: scales and runs the backward.
        reference: a live reference, for losses that need its whole vocabulary or move it.
        at_reference: the policy still is the reference: it starts as it, and no update has changed it. Their log-probs
            are then equal, and the loss of the first step is known beforehand.
        router_aux_loss: the weight of the loss that balances a mixture of experts.
        after_micro_batch: called after each.
        state: the running state of a loss that has one.
        tally: the figures since it was last replaced.
    """

    policy: Policy
    wrapped: nn.Module
    loss: Loss
    args: TrainingArguments
    accelerator: Accelerator
    reference: Policy | None = None
    at_reference: bool = False
    router_aux_loss: float = 0.0
    after_micro_batch: Callable[[], None] = lambda: None
    state: State | None = None
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        needs = self.loss.needs
        self.coupled = needs.coupled or needs.state  # the loss is called once a step, on the global batch
        self.two_passes = self.coupled or self.router_aux_loss > 0
        if needs.state and self.state is None:
            self.state = self.loss.initial_state()  # type: ignore[attr-defined]

    def __call__(self, share: Share, number: int) -> Tensor:
        """Forward and backward of step `number`, counted from 1.

        Returns:
            () a number whose mean over the processes is the mean of the loss over the global batch.
        """
        self.wrapped.train()
        for name, figure in share.figures.items():
            self.tally.add(name, torch.tensor(figure))
        if self.two_passes and (len(share.work) > 1 or self.args.world_size > 1):
            return self._in_two_passes(share, number)
        value = torch.zeros((), device=self.args.device)
        for work in share.work:
            with self._gradients_exchanged(last=work is share.work[-1]):
                value += self.micro_batch(work, share.examples, number)
            self.after_micro_batch()
        return value

    def micro_batch(self, work: Work, examples: int, number: int) -> Tensor:
        """One micro-batch's part of the step. A function of its own: its graph is gone before the next one grows."""
        logps, load = self.forward(work)
        self._check_drawn(work, logps)
        if not work.real:
            self.accelerator.backward(sum(value.sum() for value in (logps.sum, logps.value) if value is not None) * 0.0)
            return torch.zeros((), device=self.args.device)
        outcome = self.outcome(work.facts, logps, number)
        tally_batch(self.tally, outcome, self.loss.needs)
        objective: Tensor = outcome.weighted.sum() / examples * self.args.world_size
        self.accelerator.backward(objective + self._balance(load, load))
        return objective.detach()

    def _in_two_passes(self, share: Share, number: int) -> Tensor:
        """The same for a loss on the whole global batch: see `prefopt.train.gradient_cache`."""
        scored, whole_load = [], None
        with torch.no_grad():
            for work in share.work:
                logps, load = self.forward(work)
                scored.append(logps)
                self._check_drawn(work, logps)
                whole_load = load if whole_load is None or load is None else whole_load.plus(load)
                self.after_micro_batch()
        if whole_load is not None:
            whole_load = RouterLoad(*(self.accelerator.reduce(value, "sum") for value in whole_load))
        whole = Whole.gather(share.work, scored, self.args.world_size)
        leaves = whole.leaves()
        outcome = self.outcome(whole.facts, leaves, number)
        if self.args.process_index == 0:
            tally_batch(self.tally, outcome, self.loss.needs)
        objective = outcome.weighted.sum() / share.examples
        gradients = whole.gradients(objective, leaves)
        for work in share.work:
            with self._gradients_exchanged(last=work is share.work[-1]):
                logps, load = self.forward(work)
                part = carried(logps, [gradients[r] for r in work.index] if work.real else [])
                self.accelerator.backward((part + self._balance(load, whole_load)) * self.args.world_size)
            self.after_micro_batch()
        return objective.detach()

    def clip_gradients(self, share: Share, number: int) -> Any:
        """Clip those of the policy and of its value model, apart: the latter never changes the former.

        Returns:
            The policy's norm before; a scaler of half precision passes over a norm that is not finite itself.
        """
        limit = self.args.max_grad_norm if self.args.max_grad_norm > 0 else math.inf
        norm = self.accelerator.clip_grad_norm_(self.policy.model.parameters(), limit)
        values = self.policy.values
        beside = 0.0 if values is None else float(nn.utils.clip_grad_norm_(values.parameters(), limit))
        if norm is not None and self.accelerator.scaler is None and not math.isfinite(norm + beside):
            self.wrapped.zero_grad()
            self(share, number)  # the same gradient before it was clipped, which spreads a NaN
            check_gradient(float(norm + beside), self.policy.model if beside == 0 else self.policy, number)
        return norm

    def _balance(self, load: RouterLoad | None, whole: RouterLoad | None) -> Tensor | float:
        """() the part that one forward has in the loss of the router on the global batch."""
        if load is None or whole is None:
            return 0.0
        self.tally.add("router_aux_loss", whole.loss())
        return self.router_aux_loss * load.loss(whole)

    def _check_drawn(self, work: Work, logps: Logps) -> None:
        """Samples of the policy as it is: their log-probs are still what they were drawn with."""
        if work.fresh and work.real:
            off = check_drawn(work.facts, logps, computed_in(self.args, self.policy))
            self.tally.add("ratio/max_deviation", off)

    @contextlib.contextmanager
    def _gradients_exchanged(self, *, last: bool) -> Iterator[None]:
        """Let processes exchange gradients with the last micro-batch of a step only."""
        if isinstance(self.wrapped, FSDPModule):
            self.wrapped.set_requires_gradient_sync(last)
            yield
        else:
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                yield

    def score(self, work: Work) -> Logps:
        """Log-probs of one micro-batch under the policy, beside the reference's."""
        return self.forward(work)[0]

    def forward(self, work: Work) -> tuple[Logps, RouterLoad | None]:
        """The same, and the load of the experts where it is asked for; a micro-batch that fills up has none."""
        needs = self.loss.needs
        live, moved, seen = self.reference, None, None
        with autocast(self.args):
            if live is not None and needs.vocab & BESIDE_REFERENCE:
                with torch.no_grad():
                    head = replace(live.head, temperature=work.temperature)
                    seen = Reference(live(work.batch.row.to(self.args.device), Options(hidden_only=True)), head)
            epsilon = self.loss.epsilon if needs.vocab & PERTURBED else None  # type: ignore[attr-defined]
            options = Options(vocab=needs.vocab - {Vocab.REF_ENTROPY}, reference=seen, epsilon=epsilon,
                              temperature=work.temperature, values=needs.values,
                              router=self.router_aux_loss > 0 and self.wrapped.training)  # fmt: skip
            out = work.batch.forward(self.wrapped, options)
            if live is not None and needs.moving_reference:
                with torch.no_grad():
                    entropy = Vocab.REF_ENTROPY in needs.vocab
                    moved = work.batch.forward(live, Options(entropy=entropy, temperature=work.temperature))
            load = out.stats.router
            if load is not None and not work.real:
                load = RouterLoad(*(value * 0.0 for value in load))
            return work.logps(out, needs, moved), load

    def outcome(self, facts: Sequence[Facts], logps: Logps, number: int | None = None) -> BatchLoss:
        """The loss on some records.

        Args:
            facts, logps: of the records.
            number: of the step that learns from them: the loss must be finite, and its state is kept.

        Raises:
            UserError: the loss cannot take these numbers, fails, or returns something of another shape.
            NotFinite: it is not.
            TrainingError: at step 1 it is not what the plugin says that it is where policy and reference are equal.
        """
        tied = at_reference(logps, computed_in(self.args, self.policy)) if self.at_reference else logps
        examples = examples_of(facts, tied, self.loss.needs)
        name = type(self.loss).__name__
        try:
            output = self.loss(examples.logps, *((self.state,) if self.loss.needs.state else ()))
        except ValueError as error:  # what a plugin says of numbers that it cannot take, such as scores out of range
            raise UserError(f"{name}: {error}") from error
        except Exception as error:  # a plugin may be anybody's
            raise UserError(f"{name} failed on a batch: {type(error).__name__}: {error}; PREFOPT_TRACEBACK=1 shows "
                            "where") from error  # fmt: skip
        check_output(output, len(examples.record), name)
        found = BatchLoss(facts, logps, examples, output)
        if number is not None:
            check_finite(found, number)
            if self.at_reference and number == 1:
                check_first_batch(found, self.loss, computed_in(self.args, self.policy))
            if output.state is not None:
                self.state = {key: value.detach().clone() for key, value in output.state.items()}
        return found

    def move_reference(self, number: int, *, before: bool = False) -> None:
        """After step `number`: a reference that follows the policy comes closer to it, every so many steps.

        One that lags (`reference_lags`) does so `before` the weights change, and so is the policy of a step ago.
        """
        lags: bool = getattr(self.loss, "reference_lags", False)
        if self.reference is None or not self.loss.needs.moving_reference or lags != before:
            return
        share, every = self.loss.reference_update  # type: ignore[attr-defined]
        if number % every == 0:
            with torch.no_grad():
                policy = dict(self.policy.named_parameters())
                for name, weight in self.reference.named_parameters():
                    weight.lerp_(policy[name].to(weight.dtype), share)

    def evaluate(self, share: Share, tally: Tally) -> None:
        """Add the figures of one step of held-out records to a tally."""
        scored = [self.score(work) for work in share.work]
        if not self.coupled:
            for work, logps in zip(share.work, scored, strict=True):
                if work.real:
                    tally_batch(tally, self.outcome(work.facts, logps), self.loss.needs)
            return
        whole = Whole.gather(share.work, scored, self.args.world_size)
        if self.args.process_index == 0:
            tally_batch(tally, self.outcome(whole.facts, whole.logps), self.loss.needs)
