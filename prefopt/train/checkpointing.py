"""Saves a run as a checkpoint, restores a run from one, and keeps the batch of a run that broke."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from prefopt.common.files import write_link
from prefopt.engine.policy import Policy
from prefopt.engine.reference.fingerprint import fingerprint
from prefopt.errors import TrainingError
from prefopt.models.adapters import own_weights
from prefopt.train import checkpoints, replay, saving
from prefopt.train.batches import Batcher, Share
from prefopt.train.checks import NotFinite
from prefopt.train.checksums import checksums, files_of, write_checksums
from prefopt.train.metrics import Tally, Unlogged
from prefopt.train.run_identity import check_identity, write_identity
from prefopt.train.sources.source import RecordSource
from prefopt.train.states import check_form
from prefopt.train.step import Step


class Run(Protocol):
    """What of a run a checkpoint holds, and what writing it needs."""

    args: TrainingArguments
    accelerator: Accelerator
    policy: Policy
    model: Any
    wrapped: Any
    optimizer: Any
    schedule: Any
    step: Step
    sources: Mapping[str, RecordSource]
    batcher: Batcher
    state: TrainerState
    control: TrainerControl
    callbacks: Any
    unlogged: Unlogged
    tokenizer: Any

    @property
    def identity(self) -> dict[str, Any]: ...

    def count_tokens(self, tokens: Sequence[int]) -> None: ...

    def from_all(self, value: Any) -> list[Any]: ...

    def save_model(self, folder: str | Path) -> None: ...


def save(run: Run, *, resumable: bool, evaluation_due: bool) -> None:
    """Write `checkpoint-<step>`, whole or not at all; `last` and `best` then point where they should.

    Args:
        run: as it is now.
        resumable: with everything that a resume needs, where the source has it too, or the weights alone.
        evaluation_due: a signal cut an evaluation short, and the resume is to make it.
    """
    args, state, home, wait = run.args, run.state, Path(str(run.args.output_dir)), run.accelerator.wait_for_everyone
    if state.best_global_step:
        state.best_model_checkpoint = str(home / f"checkpoint-{state.best_global_step}")
    figures = _figures(run, evaluation_due)
    resumable &= run.sources["train"].resumes_after(state.global_step)
    target = home / f"checkpoint-{state.global_step}"
    wait()
    with checkpoints.writing(target, writes=args.should_save) as folder:
        wait()
        run.save_model(folder)
        if resumable:
            saving.save_optimizer(run.optimizer, run.schedule, run.accelerator.scaler, folder, writes=args.should_save)
            saving.save_generators(folder, args)
        if args.should_save:
            (folder / saving.FIGURES).write_text(json.dumps(figures))
            _save_extras(run, folder)
        wait()
        names = files_of(folder)[args.process_index :: args.world_size]
        found = run.from_all(checksums(folder, names))
        if args.should_save:
            write_checksums(folder, {k: v for part in found for k, v in part.items()}, resumable=resumable)
        wait()
    if args.should_save:
        write_link(home / "last", target)
        best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else None
        if best is not None and best.is_dir():
            write_link(home / "best", best)
        checkpoints.rotate(home, args.save_total_limit, best, target)
    wait()


def _figures(run: Run, evaluation_due: bool) -> dict[str, Any]:
    """What has been summed up since the last log, by process."""
    mine = (run.step.tally.sums(), run.unlogged.loss_value(), run.unlogged.take_tokens())
    sums, losses, tokens = zip(*run.from_all(mine), strict=True)
    run.count_tokens(tokens)
    return {"sums": sums, "losses": losses, "loss_of_earlier_logs": run.unlogged.earlier,
            "last_logged": run.unlogged.after, "evaluation_due": evaluation_due,
            "at_reference": run.step.at_reference}  # fmt: skip


def _save_extras(run: Run, folder: Path) -> None:
    write_identity(folder, run.identity)
    if run.tokenizer is not None:
        run.tokenizer.save_pretrained(folder)
    if run.step.state is not None:
        save_file({name: value.contiguous() for name, value in run.step.state.items()}, folder / saving.LOSS_STATE)
    for file, model in _beside(run).items():
        own = own_weights(model, run.model).items()
        save_file({name: weight.detach().cpu().contiguous() for name, weight in own}, folder / file)
    for callback in [*run.callbacks.callbacks, run.control]:
        if isinstance(callback, ExportableState):
            run.state.stateful_callbacks[type(callback).__name__] = callback.state()  # type: ignore[index, call-overload]
    run.state.save_to_json(str(folder / saving.STATE))


def _beside(run: Run) -> dict[str, Any]:
    """The models that change beside the policy, by the file that keeps what they do not share with it."""
    moves = run.step.reference is not None and run.step.loss.needs.moving_reference
    models = {saving.REFERENCE: run.step.reference.model if moves else None, saving.VALUES: run.policy.values}  # type: ignore[union-attr]
    return {file: model for file, model in models.items() if model is not None}


def load_weights(run: Run, folder: Path) -> None:
    """Load the weights of a checkpoint of this very run, before the model is sharded.

    Raises:
        UserError: it is of another run, or cannot be read.
    """
    with saving.reading(folder):
        check_identity(folder, run.identity)
        saving.load_weights(run.model, folder)
        if run.step.loss.needs.state:
            run.step.state = load_file(folder / saving.LOSS_STATE)
            check_form(run.step.state, run.step.loss.initial_state(), saving.LOSS_STATE)  # type: ignore[attr-defined]
        for file, model in _beside(run).items():
            weights = load_file(folder / file)
            own = own_weights(model, run.model)
            check_form(weights, dict(own), file)
            for name, weight in own.items():
                weight.data.copy_(weights[name])


def load_states(run: Run, folder: Path) -> bool:
    """Restore everything but the weights and the random generators.

    Returns:
        Whether an evaluation was cut short, and is to be made first.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    with saving.reading(folder):
        saving.load_optimizer(run.optimizer, run.schedule, run.accelerator.scaler, folder)
        state = saving.load_state(folder)
        state.is_world_process_zero = run.state.is_world_process_zero
        state.is_local_process_zero = run.state.is_local_process_zero
        if state.best_model_checkpoint is not None and not Path(state.best_model_checkpoint).is_dir():
            state.best_model_checkpoint = None
        run.state = state
        kept: Any = state.stateful_callbacks or {}
        for callback in run.callbacks.callbacks:
            if isinstance(callback, ExportableState) and type(callback).__name__ in kept:
                attributes = kept[type(callback).__name__]["attributes"]
                check_form(attributes, callback.state()["attributes"], type(callback).__name__)
                vars(callback).update(attributes)
        run.step.at_reference = False
        if not (folder / saving.FIGURES).is_file():
            return False
        figures = saving.load_figures(folder)
        run.step.at_reference = figures["at_reference"]
        sums, losses = figures["sums"], figures["losses"]
        rank, count = run.args.process_index, run.args.world_size
        if len(sums) == count:
            mine, loss = [sums[rank]], losses[rank]
        else:  # other processes than before: one takes up all sums, and each the mean loss, of which the mean is logged
            mine, loss = sums if rank == 0 else [], sum(losses) / max(len(losses), 1)
        run.step.tally = Tally.of(mine, run.args.device)
        run.unlogged = Unlogged(run.args.device, after=figures["last_logged"], earlier=figures["loss_of_earlier_logs"])
        run.unlogged.add(torch.tensor(loss, device=run.args.device), 0)
        return bool(figures["evaluation_due"])


def explained(error: NotFinite, run: Run, share: Share) -> NotFinite:
    """The error with the layer where it begins and the folder that keeps the batch, where one process has both."""
    if run.args.world_size > 1:
        return error
    number = run.state.global_step + 1
    works = [work for work in share.work if work.real]
    layer = replay.first_not_finite(run.policy, works)
    target = checkpoints.free_name(Path(str(run.args.output_dir), f"not-finite-{number}"))
    kept = f"prefopt replay {target} shows the batch again"
    try:
        with checkpoints.writing(target, writes=True) as folder:
            known = {**run.identity, "weights": fingerprint(run.model)}
            batch = replay.Kept(number, str(error), tuple(works), run.step.state, run.batcher.layout, None, known)
            replay.save(folder, batch)
            run.save_model(folder / replay.MODEL)
            if run.tokenizer is not None:
                run.tokenizer.save_pretrained(folder / replay.MODEL)
    except TrainingError as full:
        kept = f"the batch could not be kept: {full}"
    return NotFinite("; ".join(part for part in (str(error), layer, kept) if part))
