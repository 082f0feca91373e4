"""`transformers.Trainer` for any loss plugin: global batches in token-budgeted micro-batches, and exact figures.

It knows no loss by name: it reads `needs`. What transformers' loop calls a batch is here a whole optimizer step.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from prefopt.engine.forward import Options, unwrap
from prefopt.engine.gates import choose_layout
from prefopt.engine.head import Reference
from prefopt.engine.packing import Cost
from prefopt.engine.policy import Policy
from prefopt.engine.reference.table import ReferenceTable
from prefopt.errors import UserError
from prefopt.plugin import Loss, LossOutput, State, Vocab
from prefopt.train import fsdp
from prefopt.train.arguments import autocast, computed_in
from prefopt.train.callbacks import LogLastStep
from prefopt.train.checks import (
    NotFinite,
    check_first_batch,
    refuse_gradient_not_finite,
    refuse_malformed,
    refuse_not_finite,
)
from prefopt.train.examples import Facts, Flat, Outcome, examples_of
from prefopt.train.gradient_cache import Whole, pulled, random_state, set_random_state
from prefopt.train.metrics import Tally, means, tally_batch
from prefopt.train.saving import GoOn, SavingTrainer
from prefopt.train.sentinels import Sentinels
from prefopt.train.sources.feed import Feed
from prefopt.train.sources.offline import BatchConfig, GlobalBatch, Steps, StepSampler, Work, loader, per_token

HOLD_OUT = "set data.eval_records, data.eval_fraction or data.eval_path"


class PreferenceTrainer(SavingTrainer):
    """Trains a causal language model with a loss plugin.

    Args:
        model: the policy.
        loss: the plugin.
        args: transformers' arguments; one "batch" of theirs is one optimizer step here, so
            `gradient_accumulation_steps` must be 1.
        train, eval: records in tokens.
        batch: global batch and token budget.
        train_reference, eval_reference: the reference's log-probs of the same feeds, where there is a reference.
        reference_model: a live reference, for losses that need its whole vocabulary or move it. It is put into
            evaluation mode and needs no gradients from here on.
        policy_is_reference: the policy starts as the reference, so the first batch's loss is known beforehand.
        reference_name: the reference's fingerprint; a resume with another one is refused.
        tokenizer: saved with the checkpoints.
        sentinels: look at every log.
        probe: more figures of an evaluation in training, from the model.

    Raises:
        UserError: arguments that do not fit together, or that the planner or the gates refuse.
    """

    def __init__(
        self,
        model: Any,
        loss: Loss,
        args: TrainingArguments,
        *,
        train: Feed,
        eval: Feed | None = None,
        batch: BatchConfig | None = None,
        train_reference: ReferenceTable | None = None,
        eval_reference: ReferenceTable | None = None,
        reference_model: Any = None,
        policy_is_reference: bool = False,
        reference_name: str | None = None,
        tokenizer: Any = None,
        callbacks: list[Any] | None = None,
        sentinels: Sentinels | None = None,
        probe: Callable[[Any], dict[str, float]] | None = None,
    ) -> None:
        needs = loss.needs
        if args.gradient_accumulation_steps != 1:
            raise UserError("trainer.gradient_accumulation_steps must stay 1: batch.records is the size of a step, "
                            "and batch.max_tokens of one forward")  # fmt: skip
        if needs.reference and train_reference is None and not needs.moving_reference:
            raise UserError("this loss needs a reference, and none was given")
        if (needs.moving_reference or Vocab.KL in needs.vocab) and reference_model is None:
            raise UserError("this loss needs a live reference model, and none was given")
        fsdp.refuse(args, moving_reference=needs.moving_reference)
        if eval is None and (args.eval_strategy != IntervalStrategy.NO or args.eval_on_start):
            raise UserError(f"trainer.eval_strategy needs held-out records: {HOLD_OUT}")
        if args.n_gpu > 1:
            args._n_gpu = 1  # one device a process: DataParallel cannot split a row; torchrun starts more processes
        self.loss = loss
        self.tokenizer = tokenizer
        self.sentinels, self.probe = sentinels or Sentinels(), probe
        batch = batch or BatchConfig()
        verdicts = [choose_layout(m, batch.layout) for m in (model, reference_model) if m is not None]
        self.layout = next((v for v in verdicts if v.layout == "padded"), verdicts[0])  # both are fed the same rows
        self.batch = batch.settled(args.device.type, (train, eval), self.layout.layout)
        self.policy = Policy(model, self.layout)
        self.feeds = {"train": train, "eval": eval}
        self.tables = {"train": train_reference, "eval": eval_reference}
        self.reference_name = reference_name
        self.reference_model = reference_model
        if reference_model is not None:
            self.live = Policy(reference_model, self.layout).eval().requires_grad_(False).to(args.device)
        self.check_first = policy_is_reference and needs.reference
        self.whole = needs.coupled or needs.state  # the loss is called once a step, on the global batch
        self.loss_state: State | None = loss.initial_state() if needs.state else None  # type: ignore[attr-defined]
        self.tally = Tally()
        self._tokens, self._logged_at = 0, time.perf_counter()  # tokens fed here since the last log
        super().__init__(
            model=model,
            args=args,
            train_dataset=self._steps("train"),
            eval_dataset=self._steps("eval") if eval is not None else None,
            callbacks=[*(callbacks or []), LogLastStep(), GoOn(self)],
        )
        self.remove_callback(PrinterCallback)
        self.model_wrapped = self.policy

    # ---- data

    def get_train_dataloader(self) -> DataLoader[GlobalBatch]:
        """A plain loader whose batches are whole steps; accelerate does not touch it."""
        sampler = self._sampler("train", shuffle=True)
        return loader(self._steps("train"), sampler, num_workers=self.args.dataloader_num_workers)

    def _steps(self, split: str) -> Steps:
        return Steps(self._feed(split), self.loss.needs, self.layout.layout, self.tables[split])

    def _feed(self, split: str) -> Feed:
        feed = self.feeds[split]
        if feed is None:
            raise UserError(f"there are no held-out records: {HOLD_OUT}")
        return feed

    def _sampler(self, split: str, *, shuffle: bool) -> StepSampler:
        config = unwrap(self.model).config.get_text_config()
        cost = Cost.of(
            hidden_size=config.hidden_size, num_layers=config.num_hidden_layers, vocab_size=config.vocab_size
        )
        return StepSampler(
            self._feed(split),
            self.loss.needs,
            self.batch,
            self.layout.layout,
            cost,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            process=(self.args.process_index, self.args.world_size),
            shuffle=shuffle,
        )

    def _get_num_items_in_batch(self, batch_samples: list[GlobalBatch], device: torch.device) -> None:
        return None  # a global batch knows its own size

    @cached_property
    def _weights(self) -> int:
        return sum(p.numel() for p in unwrap(self.model).parameters())

    def floating_point_ops(self, inputs: GlobalBatch) -> int:  # type: ignore[override]
        """Six per token and weight, by the tokens fed."""
        return 6 * inputs.tokens_fed * self._weights

    # ---- one step

    def training_step(self, model: nn.Module, inputs: GlobalBatch, num_items_in_batch: Any = None) -> Tensor:  # type: ignore[override]
        """Forward and backward of one optimizer step.

        Returns a number whose mean over the processes (transformers takes it) is the mean over the global batch.
        """
        model.train()
        if hasattr(self.optimizer, "train"):  # schedule-free optimizers
            self.optimizer.train()  # type: ignore[union-attr]
        self._tokens += inputs.tokens_fed
        self._inputs = inputs
        try:
            return self._whole_step(model, inputs)
        except NotFinite as error:
            raise self._explained(error) from error

    def _whole_step(self, model: nn.Module, inputs: GlobalBatch) -> Tensor:
        if self.whole and (len(inputs.work) > 1 or self.args.world_size > 1):
            return self._step_in_two_passes(model, inputs)
        return self._step(model, inputs)

    def _step(self, model: nn.Module, inputs: GlobalBatch) -> Tensor:
        """Each micro-batch forward and backward; the loss of an example does not depend on other micro-batches."""
        value = torch.zeros((), device=self.args.device)
        for i, work in enumerate(inputs.work):
            with self._sync(model, last=i == len(inputs.work) - 1):
                value += self._forward_backward(model, work, inputs.examples)
            self._tell_micro_batch()
        return value

    def _forward_backward(self, model: nn.Module, work: Work, examples: int) -> Tensor:
        """One micro-batch's part of the step. A function of its own: its graph is gone before the next one grows."""
        flat = self._score(model, work)
        if not work.real:
            self._backward(flat.sum.sum() * 0.0)
            return torch.zeros((), device=self.args.device)
        outcome = self._learn(work.facts, flat)
        tally_batch(self.tally, outcome)
        objective: Tensor = outcome.weighted.sum() / examples * self.args.world_size
        self._backward(objective)
        return objective.detach()

    def _step_in_two_passes(self, model: nn.Module, inputs: GlobalBatch) -> Tensor:
        """The same for a loss on the whole global batch: see `prefopt.train.gradient_cache`."""
        states, flats = [], []
        with torch.no_grad():
            for work in inputs.work:
                states.append(random_state(self.args.device))
                flats.append(self._score(model, work))
                self._tell_micro_batch()
        whole = Whole.gather(inputs.work, flats, self.args.world_size)
        leaves = whole.leaves()
        outcome = self._learn(whole.facts, leaves)
        if self.args.process_index == 0:
            tally_batch(self.tally, outcome)
        objective = outcome.weighted.sum() / inputs.examples
        pulls = whole.pulls(objective, leaves)
        for i, (work, state) in enumerate(zip(inputs.work, states, strict=True)):
            set_random_state(state, self.args.device)
            with self._sync(model, last=i == len(inputs.work) - 1):
                part = pulled(self._score(model, work), [pulls[r] for r in work.index] if work.real else [])
                self._backward(part * self.args.world_size)
            self._tell_micro_batch()
        return objective.detach()

    def _tell_micro_batch(self) -> None:
        self.control = self.callback_handler.on_substep_end(self.args, self.state, self.control)

    def _score(self, model: nn.Module, work: Work) -> Flat:
        """Log-probs of one micro-batch under the policy, beside the reference's."""
        needs = self.loss.needs
        options = Options(vocab=needs.vocab & {Vocab.LOG_SUM_SQ, Vocab.KL})
        with autocast(self.args):
            if Vocab.KL in needs.vocab:
                with torch.no_grad():
                    hidden = self.live(work.batch.row.to(self.args.device), Options(hidden_only=True))
                    options = replace(options, reference=Reference(hidden, self.live.head))
            flat = work.flat(work.batch.forward(model, options), needs)
            if needs.moving_reference:
                with torch.no_grad():
                    out = work.batch.forward(self.live, Options(entropy=Vocab.REF_ENTROPY in needs.vocab))
                token = out.stats.logp if per_token(needs) else None
                flat = replace(flat, ref_sum=out.sum, ref_token=token, ref_entropy=out.stats.entropy)
        return flat

    def _call_loss(self, facts: Sequence[Facts], flat: Flat) -> Outcome:
        examples = examples_of(facts, flat, self.loss.needs)
        state = (self.loss_state,) if self.loss.needs.state else ()
        try:
            output = self.loss(examples.logps, *state)
        except ValueError as error:  # what a plugin says of numbers that it cannot take, such as scores out of range
            raise UserError(f"{type(self.loss).__name__}: {error}") from error
        except Exception as error:  # a plugin may be anybody's
            raise UserError(f"{type(self.loss).__name__} failed on a batch: {type(error).__name__}: {error}; "
                            "PREFOPT_TRACEBACK=1 shows where") from error  # fmt: skip
        refuse_malformed(output, len(examples.record), type(self.loss).__name__)
        return Outcome(facts, flat, examples, output)

    def _learn(self, facts: Sequence[Facts], flat: Flat) -> Outcome:
        """The loss on records that are learnt from: checked, and its state kept."""
        outcome = self._call_loss(facts, flat)
        refuse_not_finite(outcome, self.state.global_step + 1)
        if self.check_first and self.state.global_step == 0:
            check_first_batch(outcome, self.loss, computed_in(self.args, unwrap(self.model)))
        self._keep_state(outcome.output)
        return outcome

    def _keep_state(self, output: LossOutput) -> None:
        if output.state is not None:
            self.loss_state = {name: value.detach().clone() for name, value in output.state.items()}

    def _sync(self, model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Let processes exchange gradients with the last micro-batch only."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.accelerator.gradient_state._set_sync_gradients(last)
            return contextlib.nullcontext()
        return contextlib.nullcontext() if last else self.accelerator.no_sync(model=model)

    def _backward(self, objective: Tensor) -> None:
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.backward(objective, **({"scale_wrt_gas": False} if deepspeed else {}))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """transformers', refused where it is not finite; a scaler of half precision passes over such steps itself."""
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        if norm is not None and self.accelerator.scaler is None and not math.isfinite(norm):
            try:
                model.zero_grad()
                self._whole_step(model, self._inputs)  # the same gradient before it was clipped, which spreads a NaN
                refuse_gradient_not_finite(float(norm), self.policy.model, self.state.global_step + 1)
            except NotFinite as error:
                raise self._explained(error) from error
        return norm

    # ---- evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Figures over all held-out records, each counted once, whatever the batches and processes.

        A loss that couples examples is evaluated on global batches of `batch.records`, in the order of the data.
        """
        tally, start = Tally(), time.perf_counter()
        model = self.model_wrapped
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for inputs in loader(self._steps("eval"), self._sampler("eval", shuffle=False)):
                    self._evaluate_batch(model, inputs, tally)
                    self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            found = self.probe(self.policy) if self.probe is not None and self.is_in_train else {}
        finally:
            model.train(training)
        metrics = means(self._from_all(tally.sums()), f"{metric_key_prefix}_")
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics[f"{metric_key_prefix}_records"] = float(len(self._feed("eval")))
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - start, 4)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate_batch(self, model: nn.Module, inputs: GlobalBatch, tally: Tally) -> None:
        flats = [self._score(model, work) for work in inputs.work]
        if self.whole:
            whole = Whole.gather(inputs.work, flats, self.args.world_size)
            parts = [(whole.facts, whole.flat)] if self.args.process_index == 0 else []
        else:
            parts = [(work.facts, flat) for work, flat in zip(inputs.work, flats, strict=True) if work.real]
        for facts, flat in parts:
            tally_batch(tally, self._call_loss(facts, flat))

    def _from_all(self, value: Any) -> list[Any]:
        """What every process has, in their order."""
        gathered: list[Any] = gather_object([value]) if self.args.world_size > 1 else [value]
        return gathered

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the figures since the last log to transformers' own (`loss`, `grad_norm`, `learning_rate`)."""
        if "learning_rate" in logs:
            now = time.perf_counter()
            sums, tokens = zip(*self._from_all((self.tally.sums(), self._tokens)), strict=True)
            speed = sum(tokens) / max(now - self._logged_at, 1e-9)
            logs.update({**means(sums), **logs, "tokens_per_second": speed})
            self.tally, self._tokens, self._logged_at = Tally(), 0, now
        if "train_loss" in logs and self.state.global_step:  # of all steps, also of those before a resume
            whole = self._loss_of_earlier_logs + self._total_loss_scalar
            logs["train_loss"] = whole / self.state.global_step
        found = self.sentinels.look(self.state.global_step, logs)
        logs.update(found)
        if found and self.sentinels.config.stop:
            self.control.should_training_stop = self.control.should_save = True
        super().log(logs, start_time)
