"""The training loop: `PreferenceTrainer.train` is all that happens in a run, in the order in which it happens."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import (
    DefaultFlowCallback,
    EarlyStoppingCallback,
    ProgressCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import get_reporting_integration_callbacks  # type: ignore[attr-defined]
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import enable_full_determinism, speed_metrics
from transformers.utils import logging

from prefopt.engine.policy import Policy
from prefopt.errors import ThresholdError, UserError
from prefopt.plugin import Loss
from prefopt.train import checkpointing, saving
from prefopt.train.batches import Batcher, Share, shares
from prefopt.train.checks import NotFinite
from prefopt.train.metrics import Tally, Unlogged, means
from prefopt.train.run_identity import check_identity, identity_of
from prefopt.train.sentinels import Sentinels
from prefopt.train.settings import RunReference, Settings
from prefopt.train.setup import (
    HOLD_OUT,
    by_metric,
    check_parts,
    learning_rate,
    make_accelerator,
    make_optimizer,
    make_schedule,
    recompute_activations,
    wrap,
)
from prefopt.train.signals import EvaluationCut, Signals
from prefopt.train.sources.source import RecordSource
from prefopt.train.step import Step


class PreferenceTrainer:
    """Trains a causal language model with a loss plugin.

    Args:
        policy: the model, which scores rows in the layout of `batcher`.
        loss: the plugin.
        args: the options.
        sources: gives the records of each step, for the split `train`, and `eval` where records are held out.
        batcher: packs them.
        reference: the reference.
        settings: the tokenizer, callbacks, sentinels and probe.

    Raises:
        UserError: arguments that do not fit together.
    """

    def __init__(
        self,
        policy: Policy,
        loss: Loss,
        args: TrainingArguments,
        sources: Mapping[str, RecordSource],
        batcher: Batcher,
        reference: RunReference,
        settings: Settings | None = None,
    ) -> None:
        self.policy, self.loss, self.args, self.sources, self.batcher = policy, loss, args, sources, batcher
        self.model, self.layout = policy.model, policy.layout
        self.reference, self.tables = reference, reference.tables
        check_parts(loss, args, sources, reference)
        self.settings = given = settings or Settings(output_dir=str(args.output_dir))
        self.tokenizer, self.sentinels, self.probe = given.tokenizer, given.sentinels or Sentinels(), given.probe
        self.signals = next((c for c in given.callbacks if isinstance(c, Signals)), Signals())
        enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
        logging.set_verbosity(args.get_process_log_level())  # type: ignore[no-untyped-call]
        if args.should_save:
            Path(str(args.output_dir)).mkdir(parents=True, exist_ok=True)
        self.accelerator = make_accelerator(args, self.model)
        for part in filter(None, (policy, reference.policy)):
            part.to(args.device)
        self.num_weights = sum(p.numel() for p in policy.parameters())
        self.wrapped: Any = policy  # in DDP or sharded, from the beginning of training on
        self.step = Step(policy, policy, loss, args, self.accelerator, reference.policy,
                         at_reference=reference.is_start and loss.needs.reference,
                         router_aux_loss=given.trainer.get("router_aux_loss") or 0.0,
                         after_micro_batch=partial(self.event, "on_substep_end"))  # fmt: skip
        self.optimizer: Any = None
        self.schedule: Any = None
        self.rate, self.grad_norm = 0.0, None  # of the last step
        self.control, self.state = TrainerControl(), self._new_state()
        self.unlogged = Unlogged(args.device)
        self.in_training = False
        self.resumed: Path | None = None  # a checkpoint whose random generators are to be restored
        reporting = get_reporting_integration_callbacks(args.report_to)  # type: ignore[no-untyped-call]
        own = [c for c in given.callbacks if not isinstance(c, Signals)]
        flow = [DefaultFlowCallback, *reporting, *own, *([] if args.disable_tqdm else [ProgressCallback])]
        self.callbacks: Any = CallbackHandler(flow, self.model, self.tokenizer, None, None)  # type: ignore[no-untyped-call]
        self.event("on_init_end")

    # ---- the loop

    def train(self, checkpoint: str | Path | None = None) -> None:
        """Train, from a `checkpoint` if given, to the last step or until a callback, a sentinel or a signal stops."""
        evaluation_due = self._prepare(None if checkpoint is None else Path(checkpoint))
        began, first, may_stop_after = time.time(), self.state.global_step, self.sources["train"].resumes_after
        steps_per_epoch = len(self.sources["train"])
        with self.signals.patience():  # a signal waits for the end of the step
            self.event("on_train_begin")
            self.signals.check()
            self._look_back()
            if evaluation_due:
                self._evaluate_and_rank()
            if self.args.eval_on_start:
                self.evaluate()
            for epoch in range(first // steps_per_epoch, self.state.num_train_epochs):
                if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
                    break
                self.event("on_epoch_begin")
                for place, share in self._epoch(epoch):
                    self.event("on_step_begin")
                    try:
                        self.unlogged.add(self.step(share, self.state.global_step + 1), share.tokens_fed)
                        self.grad_norm = self.step.clip_gradients(share, self.state.global_step + 1)
                    except NotFinite as error:
                        raise checkpointing.explained(error, self, share) from error
                    self.event("on_pre_optimizer_step")
                    self.step.move_reference(self.state.global_step + 1, before=True)
                    self.optimizer.step()
                    self.event("on_optimizer_step")
                    self.rate = learning_rate(self.args, self.optimizer, self.schedule)
                    self.step.at_reference &= self.rate == 0  # the first step of a warm-up changes nothing
                    if not by_metric(self.args) and not self.optimizer.step_was_skipped:
                        self.schedule.step()
                    self.wrapped.zero_grad()
                    self.state.global_step += 1
                    self.state.epoch = epoch + (place + 1) / steps_per_epoch
                    self.step.move_reference(self.state.global_step)
                    self.event("on_step_end")  # by the options and the callbacks: what is due now
                    if self.signals.anywhere(self.accelerator) and may_stop_after(self.state.global_step):
                        self.control.should_save = self.control.should_training_stop = True
                    self._log_evaluate_save()
                    if self.control.should_epoch_stop or self.control.should_training_stop:
                        break
                self.event("on_epoch_end")
                if not (self.signals.received and self.state.epoch % 1):  # else: left in its middle
                    self._log_evaluate_save()
            self._finish(began, first)
        self.signals.check(f"checkpoint-{self.state.global_step} is saved")

    def _epoch(self, epoch: int) -> Iterator[tuple[int, Share]]:
        """The steps of an epoch that are not made yet: the place of each in the epoch, and this process's share."""
        size = len(self.sources["train"])
        resumed, self.resumed = self.resumed, None
        first = self.state.global_step % size if resumed is not None else 0
        if resumed is not None and first == 0:
            saving.load_generators(resumed, self.args)
        steps = range(epoch * size + first, (epoch + 1) * size)
        self.callbacks.train_dataloader = self.shares("train", steps)
        iterator = iter(self.callbacks.train_dataloader)  # draws a random number, at the beginning of each epoch
        if resumed is not None and first > 0:
            saving.load_generators(resumed, self.args)
        yield from enumerate(iterator, first)

    def shares(self, split: str, steps: Sequence[int] | None = None) -> Any:
        """A loader of this process's shares of some steps; by default those of the first epoch."""
        source = self._source(split)
        workers = self.args.dataloader_num_workers if split == "train" else 0
        return shares(source, self.batcher, range(len(source)) if steps is None else steps, num_workers=workers)

    def _log_evaluate_save(self) -> None:
        """Do what is due; the last step is always logged, so that the figures cover every step."""
        if self.state.global_step >= self.state.max_steps and self.args.logging_strategy != "no":
            self.control.should_log = True
        if self.control.should_log and self.state.global_step > self.unlogged.after:
            self._log_training()
        if self.control.should_evaluate:
            try:
                best = self._evaluate_and_rank()
            except EvaluationCut:  # a resume makes it again
                self.control.should_training_stop, self.control.should_evaluate = True, False
                self._save_checkpoint(evaluation_due=True)
                return
            if self.args.save_strategy == "best":
                self.control.should_save = best
        if self.control.should_save:
            self._save_checkpoint()

    def _finish(self, began: float, first: int) -> None:
        """Log the figures of the whole training, load the best weights where that was asked for, look at the last."""
        done = self.state.global_step - first
        self.count_tokens(self.from_all(self.unlogged.take_tokens()))
        samples = done * self._source("train").records
        figures = speed_metrics("train", began, num_samples=samples, num_steps=done)  # type: ignore[no-untyped-call]
        figures["total_flos"] = self.state.total_flos
        figures["train_loss"] = (self.unlogged.earlier + self.unlogged.loss_value()) / max(self.state.global_step, 1)
        self.in_training = False
        self.log(figures)
        if self.args.load_best_model_at_end and (best := self.state.best_model_checkpoint) is not None:
            saving.load_weights(self.model, Path(best))
        self.event("on_train_end")
        self._check_weights()

    # ---- evaluation and figures

    def evaluate(self) -> dict[str, float]:
        """Figures over all held-out records, each counted once, whatever the batches and processes.

        A loss that couples examples is evaluated on global batches of `batch.records`, in the order of the data.
        """
        tally, start, records = Tally(), time.perf_counter(), 0
        training = self.wrapped.training
        self.wrapped.eval()
        try:
            with torch.no_grad():
                for share in self.shares("eval"):
                    self.step.evaluate(share, tally)
                    records += share.records
                    self.event("on_prediction_step")
                    if self.in_training and self.signals.anywhere(self.accelerator):
                        raise EvaluationCut(f"stopped by {self.signals.received} in an evaluation; the same command "
                                            "makes it again")  # fmt: skip
            found = self.probe(self.policy) if self.probe is not None and self.in_training else {}
        finally:
            self.wrapped.train(training)
        metrics = means(self.from_all(tally.sums()), "eval_")
        metrics |= {f"eval_{name}": value for name, value in found.items()}
        metrics |= {"eval_records": float(records), "eval_runtime": round(time.perf_counter() - start, 4)}
        self.log(metrics)
        self.event("on_evaluate", metrics=metrics)
        return metrics

    def _evaluate_and_rank(self) -> bool:
        """Evaluate in training; whether this is the best evaluation so far, by `trainer.metric_for_best_model`."""
        metrics, wanted = self.evaluate(), self.args.metric_for_best_model
        if wanted is None:
            return False
        name = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
        if name not in metrics:
            raise UserError(f"trainer.metric_for_best_model={wanted} is not a figure of the evaluation: "
                            f"{', '.join(sorted(metrics))}")  # fmt: skip
        value, best = metrics[name], self.state.best_metric
        if by_metric(self.args):
            self.schedule.step(value)
        if best is not None and not (value > best if self.args.greater_is_better else value < best):
            return False
        self.state.best_metric = value
        if self.args.save_strategy != "no":
            self.state.best_global_step = self.state.global_step
        return True

    def _log_training(self) -> None:
        """Log what was summed up since the last log, over all processes."""
        now, window = time.perf_counter(), self.unlogged
        mine = (self.step.tally.sums(), window.loss_value(), window.tokens, window.take_tokens())
        sums, losses, tokens, uncounted = zip(*self.from_all(mine), strict=True)
        self.count_tokens(uncounted)
        loss = torch.tensor(losses).mean().item()
        norm = self.grad_norm
        logs: dict[str, Any] = {
            "loss": loss / (self.state.global_step - window.after),
            "grad_norm": norm.item() if isinstance(norm, torch.Tensor) else norm,
            "learning_rate": self.rate,
        }
        logs = {**logs, **means(sums), **logs, "tokens_per_second": sum(tokens) / max(now - window.since, 1e-9)}
        self.step.tally = Tally()
        self.unlogged = Unlogged(self.args.device, after=self.state.global_step, earlier=window.earlier + loss)
        self.log({name: value for name, value in logs.items() if value is not None})

    def log(self, figures: dict[str, float]) -> None:
        """Log figures: the sentinels look at them, then the callbacks and trackers get them."""
        found = self.sentinels.look(self.state.global_step, figures)
        figures.update(found)
        if found and self.sentinels.config.stop:
            self.control.should_training_stop = self.control.should_save = True
        figures["epoch"] = self.state.epoch
        self.state.log_history.append({**figures, "step": self.state.global_step})
        self.event("on_log", logs=figures)

    def event(self, name: str, **given: Any) -> None:
        """Tell the callbacks; they answer by `control`."""
        self.control = getattr(self.callbacks, name)(self.args, self.state, self.control, **given)

    # ---- saving

    def save_model(self, folder: str | Path) -> None:
        """Save the weights, or the adapter, as plain transformers and peft load them."""
        saving.save_weights(self.policy, Path(folder), writes=self.args.should_save)

    def save_last_step(self) -> None:
        """Save the last step, if training has come so far and no checkpoint has it: for a run that is stopped."""
        target = Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}")
        begun = self.optimizer is not None and self.state.global_step > 0
        if begun and not target.exists() and not self.args.load_best_model_at_end:
            self._save_checkpoint(stopped=True)

    def _save_checkpoint(self, *, evaluation_due: bool = False, stopped: bool = False) -> None:
        """Save everything that a resume needs, whole or not at all."""
        self._check_weights()
        stopped |= self.control.should_training_stop and self.state.global_step < self.state.max_steps
        checkpointing.save(self, resumable=stopped or not self.args.save_only_model, evaluation_due=evaluation_due)
        self.event("on_save")

    def _check_weights(self) -> None:
        """Raise NotFinite where the last update broke the weights."""
        mine = saving.first_weights_not_finite(self.model)
        found = next((name for name in self.from_all(mine) if name), None)
        if found:
            step = self.state.global_step
            raise NotFinite(f"step {step}: loss and gradient were finite, but after the update the weights {found} "
                            "are not; they are not saved; lower trainer.learning_rate")  # fmt: skip

    # ---- the beginning

    def _prepare(self, checkpoint: Path | None) -> bool:
        """Wrap the model, make optimizer and schedule, load a checkpoint; whether it says that an evaluation is due."""
        args, size = self.args, len(self._source("train"))
        self.accelerator.free_memory()
        _ = self.identity  # of the model as it was given, not sharded
        if checkpoint is not None:
            checkpointing.load_weights(self, checkpoint)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * size)
        if args.activation_checkpointing:
            recompute_activations(self.model, args)
        self.wrapped = self.step.wrapped = wrap(self.policy, self.accelerator, args)
        self.optimizer = self.accelerator.prepare_optimizer(make_optimizer(args, self.model, self.policy.values))
        self.schedule = make_schedule(args, self.optimizer, steps)
        self.callbacks.optimizer, self.callbacks.lr_scheduler = self.optimizer, self.schedule
        self.state, self.unlogged, self.step.tally = self._new_state(), Unlogged(args.device), Tally()
        evaluation_due = checkpoint is not None and checkpointing.load_states(self, checkpoint)
        self.state.max_steps = steps
        self.state.num_train_epochs = math.ceil(steps / size if args.max_steps > 0 else args.num_train_epochs)
        self.state.compute_steps(args, steps)  # type: ignore[no-untyped-call]
        self.resumed, self.in_training = checkpoint, True
        self.wrapped.zero_grad()
        return evaluation_due

    def _new_state(self) -> TrainerState:
        first = self.accelerator.is_main_process
        return TrainerState(is_local_process_zero=self.accelerator.is_local_main_process, is_world_process_zero=first)

    def _look_back(self) -> None:
        """Ask what was logged before a resume: what has stopped the run stops it again."""
        self.sentinels.begin(records=self._source("train").records, history=self.state.log_history)
        if self.sentinels.config.stop and self.sentinels.findings:
            found = self.sentinels.findings[-1]
            raise ThresholdError(f"a sentinel has stopped this run: step {found.step}: {found.text}. It resumes from "
                                 "its checkpoint with sentinels.stop=false")  # fmt: skip
        early = (c for c in self.callbacks.callbacks if isinstance(c, EarlyStoppingCallback))
        if any(c.early_stopping_patience_counter >= c.early_stopping_patience for c in early):
            self.control.should_training_stop = True

    def check_identity(self, checkpoint: str | Path) -> None:
        """Raise UserError where a checkpoint is of a run with other settings than this one."""
        with saving.reading(checkpoint):
            check_identity(Path(checkpoint), self.identity)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the run that it continues."""
        return identity_of(self.loss, self.sources, self.args, self.model, self.reference.name, self.settings)

    def _source(self, split: str) -> RecordSource:
        if split not in self.sources:
            raise UserError(f"there are no held-out records: {HOLD_OUT}")
        return self.sources[split]

    def count_tokens(self, tokens: Sequence[int]) -> None:
        """Add the operations of some tokens to `total_flos`: six per token and weight."""
        self.state.total_flos += 6.0 * sum(tokens) * self.num_weights

    def from_all(self, value: Any) -> list[Any]:
        """What every process has, in their order."""
        return gather_object([value]) if self.args.world_size > 1 else [value]
