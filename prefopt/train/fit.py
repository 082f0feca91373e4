"""From a model, a loss and records to a tuned model: the reference, the trainer, and figures before and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from prefopt.common.cache import cache_dir
from prefopt.data.tokens import TokenRecord
from prefopt.engine.cpu import keep_large_buffers
from prefopt.engine.forward import unwrap
from prefopt.engine.gates import choose_layout
from prefopt.engine.limits import check_length
from prefopt.engine.packing import EpochPlan
from prefopt.engine.reference.table import ReferenceStore, ReferenceTable, fingerprint, reference_table
from prefopt.errors import Stopped, ThresholdError, UserError
from prefopt.models.adapters import twin
from prefopt.plugin import Loss, Vocab
from prefopt.train import fsdp
from prefopt.train.arguments import autocast, training_arguments
from prefopt.train.callbacks import MovingReference
from prefopt.train.sentinels import Sentinels
from prefopt.train.sources.feed import Feed
from prefopt.train.sources.offline import BatchConfig
from prefopt.train.trainer import PreferenceTrainer


@dataclass(frozen=True, kw_only=True)
class Result:
    """What training gives back.

    Attributes:
        trainer: with the tuned `model`, and `state.log_history`.
        before, after: figures on the held-out records (empty without any), names without the `eval_` prefix.
        seconds: of training alone: its steps.
        reference_seconds: of the reference's log-probs before it; 0 for a loss that reads none ahead.
        reference_hits, reference_misses: log-probs of the reference found in the store, and computed.
    """

    trainer: PreferenceTrainer
    before: dict[str, float]
    after: dict[str, float]
    seconds: float
    reference_seconds: float
    reference_hits: int
    reference_misses: int


def train(
    model: Any,
    loss: Loss,
    records: Sequence[TokenRecord],
    *,
    output_dir: str | Path,
    eval: Sequence[TokenRecord] | None = None,
    batch: BatchConfig | None = None,
    seed: int = 0,
    reference: Any = None,
    store: Path | None = None,
    tokenizer: Any = None,
    callbacks: Sequence[Any] = (),
    sentinels: Sentinels | None = None,
    probe: Callable[[Any], dict[str, float]] | None = None,
    resume: str | Path | None = None,
    progress: Callable[[int], None] = lambda n: None,
    **trainer: Any,
) -> Result:
    """Tune `model` in place with `loss` on `records`.

    Args:
        model: a transformers causal language model, or a PEFT model.
        loss: a plugin, such as `prefopt.losses.registry.load("dpo")`.
        records: pairs, unpaired completions, lists or demonstrations in tokens (`prefopt.data.prepare`).
        output_dir: for checkpoints.
        eval: held-out records, scored before and after.
        batch: records of a step, tokens of a forward.
        seed: of the order of the records.
        reference: another model as reference; None: `model` as it is now, adapters included.
        store: folder of the reference log-probs; None: in prefopt's cache.
        tokenizer: saved with checkpoints.
        callbacks: of transformers' kind.
        sentinels: look at every log; by default with the bounds of `SentinelConfig`.
        probe: more figures of an evaluation in training, from the model, such as the KL of its texts.
        resume: a checkpoint folder.
        progress: called with the number of records whose reference log-probs are ready.
        **trainer: `learning_rate`, `max_steps` and the other options of `prefopt.train.arguments`.

    Raises:
        UserError: what was given does not fit together.
        TrainingError: the run is wrong, and was stopped.
        ThresholdError: a sentinel stopped it (`SentinelConfig.stop`).
        Stopped: a signal came, and `prefopt.train.signals.Signals` among the callbacks waited for it.
    """
    reference_pass: list[float] = []
    built = build(
        model,
        loss,
        records,
        output_dir=output_dir,
        eval=eval,
        batch=batch,
        seed=seed,
        reference=reference,
        store=store,
        tokenizer=tokenizer,
        callbacks=callbacks,
        sentinels=sentinels,
        probe=probe,
        progress=progress,
        clock=reference_pass.append,
        **trainer,
    )
    if resume is not None:
        built.refuse_another_run(resume)  # before anything is logged
    before = built.evaluate() if eval is not None else {}
    start = time.perf_counter()
    try:
        built.train(resume_from_checkpoint=str(resume) if resume is not None else None)
        seconds = time.perf_counter() - start
        if built.sentinels.config.stop and built.sentinels.findings:
            raise ThresholdError(f"stopped after step {built.state.global_step}: {built.sentinels.findings[-1].text}")
        after = built.evaluate() if eval is not None else {}
    except Stopped:
        built.keep()
        raise
    finally:
        for callback in callbacks:
            if hasattr(callback, "close"):
                callback.close()
    tables = [table for table in built.tables.values() if table is not None]
    return Result(
        trainer=built,
        before={k.removeprefix("eval_"): v for k, v in before.items()},
        after={k.removeprefix("eval_"): v for k, v in after.items()},
        seconds=seconds,
        reference_seconds=sum(reference_pass),
        reference_hits=sum(table.hits for table in tables),
        reference_misses=sum(table.misses for table in tables),
    )


def build(
    model: Any,
    loss: Loss,
    records: Sequence[TokenRecord],
    *,
    output_dir: str | Path,
    eval: Sequence[TokenRecord] | None = None,
    batch: BatchConfig | None = None,
    seed: int = 0,
    reference: Any = None,
    store: Path | None = None,
    tokenizer: Any = None,
    callbacks: Sequence[Any] = (),
    sentinels: Sentinels | None = None,
    probe: Callable[[Any], dict[str, float]] | None = None,
    progress: Callable[[int], None] = lambda n: None,
    clock: Callable[[float], None] = lambda seconds: None,
    **trainer: Any,
) -> PreferenceTrainer:
    """The trainer of `train`, ready but not started.

    Held-out records are scored under the reference for every loss, so that all methods report the same figures;
    training records only for losses that read it.

    Without `reference`, the reference is `model` as it is given here, adapters included: after LoRA SFT that is the SFT
    model, and with a fresh adapter the model below it. A live reference is then a copy of it
    that shares the weights which an adapter leaves frozen.

    `clock` is called with the seconds of the reference pass, if there is one: fingerprint, store and forwards.
    """
    batch = batch or BatchConfig()
    needs = loss.needs
    arguments = training_arguments(output_dir, seed=seed, records=batch.records, **trainer)
    fsdp.refuse(arguments, moving_reference=needs.moving_reference)
    if arguments.device.type == "cpu":
        keep_large_buffers()
    layout = choose_layout(model, batch.layout).layout
    feeds = {"train": Feed(records, needs, whole=False, seed=seed)}
    if eval is not None:
        feeds["eval"] = Feed(eval, needs, whole=True, seed=seed)
    batch = batch.settled(arguments.device.type, feeds.values(), layout)
    max_tokens = batch.budget(arguments.device.type)
    for feed in feeds.values():  # what cannot be planned or scored is refused before the reference is computed
        lengths = feed.lengths()
        EpochPlan(lengths, seed=seed, epoch=0, records=batch.records, max_tokens=max_tokens, layout=layout)
        if len(lengths):
            at = int(lengths.widths().argmax())
            which = at if lengths.ids is None else repr(lengths.ids[at])
            check_length(unwrap(model), int(lengths.widths()[at]) + 1, f"record {which}: a sequence")
    wanted = {
        split: feed
        for split, feed in feeds.items()
        if split == "eval" or (needs.reference and not needs.moving_reference)
    }
    tables: dict[str, ReferenceTable] = {}
    name = None
    if wanted:
        referee = (model if reference is None else reference).to(arguments.device)
        choose_layout(referee, batch.layout)
        about = {"model": getattr(referee.config, "_name_or_path", ""), "dtype": str(referee.dtype)}
        precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else None
        start = time.perf_counter()
        name = fingerprint(referee, precision)
        refuse_other_weights(name)
        kept = ReferenceStore(store or cache_dir() / "reference", name, about)
        for split, feed in wanted.items():
            with autocast(arguments):
                tables[split] = reference_table(
                    referee,
                    feed,
                    kept,
                    max_tokens=max_tokens,
                    entropy=Vocab.REF_ENTROPY in needs.vocab,
                    process=(arguments.process_index, arguments.world_size),
                    barrier=PartialState().wait_for_everyone,
                    progress=progress,
                )
        clock(time.perf_counter() - start)
    live = reference
    if needs.moving_reference or (live is None and Vocab.KL in needs.vocab):
        live = twin(model, reference)
    if needs.moving_reference:
        callbacks = [*callbacks, MovingReference(live, *loss.reference_update)]  # type: ignore[attr-defined]
    return PreferenceTrainer(
        model,
        loss,
        arguments,
        train=feeds["train"],
        eval=feeds.get("eval"),
        batch=batch,
        train_reference=tables.get("train"),
        eval_reference=tables.get("eval"),
        reference_model=live if needs.moving_reference or Vocab.KL in needs.vocab else None,
        policy_is_reference=reference is None,
        reference_name=name,
        tokenizer=tokenizer,
        callbacks=list(callbacks),
        sentinels=sentinels,
        probe=probe,
    )


def refuse_other_weights(name: str) -> None:
    """Raise UserError where processes that train together start from other weights; `name` is a fingerprint."""
    if PartialState().num_processes > 1 and len(set(gather_object([name]))) > 1:
        raise UserError("the processes of this run have not the same weights before training: was the model loaded "
                        "with the same seed and all of its weights on each?")  # fmt: skip
