"""The part of the trainer that saves, stops and goes on: a resumed run is the run that was never stopped."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from prefopt.common.files import write_link
from prefopt.engine.forward import unwrap
from prefopt.engine.policy import Policy
from prefopt.errors import PrefoptError, ThresholdError, TrainingError, UserError, first_line
from prefopt.models.adapters import own_weights
from prefopt.plugin import Loss, State
from prefopt.train import fsdp, replay
from prefopt.train.checkpoints import (
    facts_of_options,
    fingerprint_of_records,
    free_name,
    refuse_other_identity,
    rotate,
    write_identity,
    writing,
)
from prefopt.train.checks import NotFinite
from prefopt.train.checksums import checksums, files_of, write_checksums
from prefopt.train.metrics import Tally
from prefopt.train.replay import first_not_finite
from prefopt.train.sentinels import Sentinels
from prefopt.train.signals import EvaluationCut
from prefopt.train.sources.feed import Feed
from prefopt.train.sources.offline import BatchConfig, GlobalBatch

LOSS_STATE = "loss_state.safetensors"
REFERENCE = "reference.safetensors"
FIGURES = "figures.json"  # what has been summed up since the last log


class SavingTrainer(Trainer):
    """`transformers.Trainer` with checkpoints that are whole or absent, and hold everything that a resume needs."""

    loss: Loss
    batch: BatchConfig
    tokenizer: Any
    reference_name: str | None
    policy: Policy  # around `model`; DDP and FSDP2 go around it
    reference_model: Any
    loss_state: State | None
    tally: Tally
    layout: Any  # the verdict of the gates
    sentinels: Sentinels
    _inputs: GlobalBatch  # of the step that runs
    _kept_figures: dict[str, Any] | None = None  # of the checkpoint that this run goes on from
    _loss_of_earlier_logs = 0.0  # summed over the steps before the resume
    _in_loop = False
    _shards: Any = None  # accelerate's settings of FSDP2, where the model is to be sharded

    def _feed(self, split: str) -> Feed:
        raise NotImplementedError

    def _from_all(self, value: Any) -> list[Any]:
        raise NotImplementedError

    # ---- shards

    def _build_accelerator_args(self, **kw: Any) -> dict[str, Any]:
        self._shards = fsdp.plugin_of(self.args)
        return super()._build_accelerator_args(**kw | {"fsdp_plugin": self._shards})

    def create_accelerator_and_postprocess(self) -> None:
        with fsdp.switch_kept():
            super().create_accelerator_and_postprocess()
        if self._shards is not None:
            fsdp.shard_on_cpu(self.accelerator.state, self._shards)
            self.is_fsdp_enabled = True

    def _prepare_for_training(self, max_steps: int, loader: Any, checkpoint: str | None) -> Any:
        """transformers', with the weights of a checkpoint loaded while each process still has all of them."""
        _ = self._identity  # of the weights as they were given: accelerate may shard and widen them
        if checkpoint is not None and self.is_fsdp_enabled:
            self.is_fsdp_enabled = False
            try:
                self._load_from_checkpoint(checkpoint)
            finally:
                self.is_fsdp_enabled = True
        plain, self.model = self.model, self.policy  # what accelerate wraps
        if self._shards is not None and self._shards.transformer_cls_names_to_wrap is None:
            self._shards.transformer_cls_names_to_wrap = list(getattr(plain, "_no_split_modules", None) or [])
        try:
            return super()._prepare_for_training(max_steps, loader, checkpoint)  # type: ignore[no-untyped-call]
        finally:
            self.model = self.callback_handler.model = plain

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        fsdp.save_optimizer(self.optimizer, Path(output_dir), writes=self.args.should_save)
        if self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, fsdp.SCHEDULER))

    # ---- writing

    def _save_checkpoint(
        self, model: nn.Module, trial: Any, *, evaluation_due: bool = False, stopped: bool = False
    ) -> None:
        """Everything that a resume needs, in `checkpoint-<step>`, whole or not at all.

        Raises:
            NotFinite: the last update broke the weights; nothing is written.
        """
        self._refuse_broken_weights()
        run = Path(str(self.args.output_dir))
        target = run / f"checkpoint-{self.state.global_step}"
        stopped |= self.control.should_training_stop and self.state.global_step < self.state.max_steps
        resumable = stopped or not self.args.save_only_model
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(run / f"checkpoint-{self.state.best_global_step}")
        self.store_flos()
        self.accelerator.wait_for_everyone()
        with writing(target, writes=self.args.should_save) as folder:
            self.accelerator.wait_for_everyone()
            self.save_model(str(folder), _internal_call=True)
            if resumable:
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
                self._save_rng_state(str(folder))
            figures = self._figures(evaluation_due)
            if self.args.should_save:
                (folder / FIGURES).write_text(json.dumps(figures))
                self._save_extras(folder)
            self.accelerator.wait_for_everyone()
            names = files_of(folder)[self.args.process_index :: self.args.world_size]
            facts = self._from_all(checksums(folder, names))
            if self.args.should_save:
                write_checksums(folder, {k: v for part in facts for k, v in part.items()}, resumable=resumable)
            self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_link(run / "last", target)
            if self.state.best_model_checkpoint and Path(self.state.best_model_checkpoint).is_dir():
                write_link(run / "best", Path(self.state.best_model_checkpoint))
            rotate(run, self.args.save_total_limit, self.state.best_model_checkpoint, target)
        self.accelerator.wait_for_everyone()

    def keep(self) -> None:
        """Save the last step, if training has come so far and no checkpoint has it: for a run that is stopped."""
        target = Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}")
        begun = self._in_loop and self.state.global_step > 0
        if begun and not target.exists() and not self.args.load_best_model_at_end:
            self._save_checkpoint(self.model_wrapped, None, stopped=True)

    def _refuse_broken_weights(self) -> None:
        found = next((name for name in self._from_all(first_weights_not_finite(unwrap(self.model))) if name), None)
        if found:
            step = self.state.global_step
            raise NotFinite(f"step {step}: loss and gradient were finite, but after the update the weights {found} "
                            "are not; they are not saved; lower trainer.learning_rate")  # fmt: skip

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if output_dir is not None:
            Path(output_dir, "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing reads

    @cached_property
    def _identity(self) -> dict[str, Any]:
        records = fingerprint_of_records(self._feed("train").lengths())
        return {"loss": repr(self.loss), "records": records, "batch.records": self.batch.records,
                "seed": self.args.seed, "reference": self.reference_name,
                **facts_of_options(self.args, self.model)}  # fmt: skip

    def _save_extras(self, folder: Path) -> None:
        write_identity(folder, self._identity)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        if self.loss_state is not None:
            save_file({name: value.contiguous() for name, value in self.loss_state.items()}, folder / LOSS_STATE)
        if self.loss.needs.moving_reference:
            own = own_weights(self.reference_model, self.model).items()
            save_file({name: weight.detach().cpu().contiguous() for name, weight in own}, folder / REFERENCE)
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()  # type: ignore[index, call-overload]
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _figures(self, evaluation_due: bool) -> dict[str, Any]:
        """What transformers and the tally have summed up since the last log, by process."""
        sums, losses = zip(*self._from_all((self.tally.sums(), self._tr_loss.item())), strict=True)
        return {
            "sums": list(sums),
            "losses": list(losses),
            "loss_of_earlier_logs": self._loss_of_earlier_logs + self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "evaluation_due": evaluation_due,
        }

    # ---- stopping

    def _explained(self, error: NotFinite) -> NotFinite:
        """The error with the layer where it begins and the file that keeps the batch, where one process has both."""
        if self.args.world_size > 1:
            return error
        works = [work for work in self._inputs.work if work.real]
        layer = first_not_finite(self.policy, works)
        target = free_name(Path(str(self.args.output_dir), f"not-finite-{self.state.global_step + 1}"))
        kept = f"prefopt replay {target} shows the batch again"
        try:
            with writing(target, writes=True) as folder:
                feed = self._feed("train")
                records = [[feed[i] for i in work.index] for work in works]
                replay.save(folder, works, records, step=self.state.global_step + 1, why=str(error),
                            layout=self.layout.layout, state=self.loss_state)  # fmt: skip
                self.save_model(str(folder / replay.MODEL), _internal_call=True)
                if self.tokenizer is not None:
                    self.tokenizer.save_pretrained(folder / replay.MODEL)
        except TrainingError as full:
            kept = f"the batch could not be kept: {full}"
        return NotFinite("; ".join(part for part in (str(error), layer, kept) if part))

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *rest: Any, **kw: Any
    ) -> None:
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *rest, **kw)
        except EvaluationCut:
            self.control.should_training_stop = True
            self.control.should_evaluate = False
            self._save_checkpoint(model, trial, evaluation_due=True)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    # ---- going on

    def refuse_another_run(self, checkpoint: str | Path) -> None:
        """Raise UserError where a checkpoint is of a run with other settings than this one."""
        with reading(checkpoint):
            refuse_other_identity(Path(checkpoint), self._identity)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if fsdp.sharded(self.model):
            return  # they were loaded before
        folder = Path(resume_from_checkpoint)
        with reading(folder):
            refuse_other_identity(folder, self._identity)
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            if self.loss.needs.state:
                self.loss_state = load_file(folder / LOSS_STATE)
            if self.loss.needs.moving_reference:
                weights = load_file(folder / REFERENCE)
                for name, weight in own_weights(self.reference_model, self.model).items():
                    weight.data.copy_(weights[name])
            refuse_strange_state(TrainerState.load_from_json(str(folder / "trainer_state.json")))
            self._kept_figures = figures_of(folder / FIGURES)

    def _init_training_state(self, *given: Any, **kw: Any) -> Any:
        with reading(given[3] if len(given) > 3 else kw.get("resume_from_checkpoint")):
            return super()._init_training_state(*given, **kw)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            if checkpoint is None or not self.is_fsdp_enabled:
                super()._load_optimizer_and_scheduler(checkpoint)
            else:
                fsdp.load_optimizer(self.optimizer, Path(checkpoint))
                assert self.lr_scheduler is not None
                self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, fsdp.SCHEDULER), weights_only=True))

    def _load_scaler(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _run_epoch(self, *given: Any, **kw: Any) -> None:
        """transformers', but for a run that goes on from its last checkpoint: that one would train another step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*given, **kw)  # type: ignore[no-untyped-call]

    def _go_on(self) -> None:
        """Take up the sums since the last log; make the evaluation that the stop cut short."""
        self._in_loop = True
        self.sentinels.begin(records=self.batch.records, history=self.state.log_history)
        if self.sentinels.config.stop and self.sentinels.findings:
            found = self.sentinels.findings[-1]
            raise ThresholdError(f"a sentinel has stopped this run: step {found.step}: {found.text}. It goes on from "
                                 "its checkpoint with sentinels.stop=false")  # fmt: skip
        self.tally, self._loss_of_earlier_logs = Tally(), 0.0
        kept, self._kept_figures = self._kept_figures, None
        if kept is None:
            return
        sums, losses = kept["sums"], kept["losses"]
        if len(sums) == self.args.world_size:
            self.tally = Tally.of([sums[self.args.process_index]], self.args.device)
            loss = losses[self.args.process_index]
        else:  # other processes than before: one takes up all sums, and each the mean loss, of which the mean is logged
            self.tally = Tally.of(sums if self.args.process_index == 0 else [], self.args.device)
            loss = sum(losses) / max(len(losses), 1)
        self._tr_loss += torch.tensor(loss, device=self._tr_loss.device, dtype=self._tr_loss.dtype)
        self._loss_of_earlier_logs = kept["loss_of_earlier_logs"]
        self._globalstep_last_logged = kept["last_logged"]
        if kept["evaluation_due"]:
            metrics = self._evaluate(None, None)
            self._determine_best_metric(metrics=metrics, trial=None)


class GoOn(TrainerCallback):
    """Calls `_go_on` where transformers has set its sums to zero and has not begun; looks at the weights that it ends
    with, before anybody uses them."""

    def __init__(self, trainer: SavingTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer._go_on()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer._refuse_broken_weights()


def first_weights_not_finite(model: nn.Module) -> str | None:
    """The name of the first trained weights of a model (of this process's shards) that are not finite."""
    trained = [(name, weight.detach()) for name, weight in model.named_parameters() if weight.requires_grad]
    local = [(name, w.to_local() if isinstance(w, DTensor) else w) for name, w in trained]
    finite = [torch.isfinite(weight).all() for _, weight in local]
    if not finite or bool(torch.stack([flag.to(finite[0].device) for flag in finite]).all()):  # the device is read once
        return None
    return next(name for (name, _), flag in zip(local, finite, strict=True) if not flag)


def refuse_strange_state(state: TrainerState) -> None:
    """Raise ValueError where transformers' state has values of other kinds than it writes."""
    kinds: dict[str, Any] = {"global_step": int, "max_steps": int, "num_train_epochs": int, "total_flos": int | float,
                             "log_history": list, "stateful_callbacks": dict | None, "epoch": int | float | None,
                             "best_global_step": int | None, "best_metric": int | float | None,
                             "best_model_checkpoint": str | None, "num_input_tokens_seen": int,
                             **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), int | float)}  # fmt: skip
    for name, kind in kinds.items():
        value = getattr(state, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"trainer_state.json: {name} is of another kind")
    if not 0 <= state.global_step < 2**53 or not all(isinstance(entry, dict) for entry in state.log_history):
        raise ValueError("trainer_state.json: its steps are none")
    if not all(0 < every < math.inf for every in (state.logging_steps, state.eval_steps, state.save_steps)):
        raise ValueError("trainer_state.json: it logs, evaluates or saves at no step")
    for entry in state.log_history:
        if not isinstance(entry.get("step", 0), int) or not all(
            isinstance(v, int | float | str) for v in entry.values()
        ):
            raise ValueError("trainer_state.json: log_history has something else than figures")


def figures_of(path: Path) -> dict[str, Any]:
    """What `SavingTrainer._figures` gave, as it was written; ValueError, TypeError or KeyError where it is not that."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return {
        "sums": [{str(n): (float(total), int(count)) for n, (total, count) in part.items()} for part in kept["sums"]],
        "losses": [float(loss) for loss in kept["losses"]],
        "loss_of_earlier_logs": float(kept["loss_of_earlier_logs"]),
        "last_logged": int(kept["last_logged"]),
        "evaluation_due": bool(kept["evaluation_due"]),
    }


@contextlib.contextmanager
def reading(folder: str | Path | None) -> Iterator[None]:
    """Names the checkpoint that cannot be read: each library has its own errors for that."""
    try:
        yield
    except PrefoptError:
        raise
    except Exception as error:
        raise UserError(
            f"cannot resume from {folder}: {first_line(error)[:300]}; resume=auto takes the last checkpoint that is "
            "whole, resume=never starts anew in another folder"
        ) from error
