"""From a model, a loss and records to a tuned model: the reference, the trainer, and figures before and after."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainingArguments

from prefopt.common.option_limits import check_limits
from prefopt.data.images.inputs import inputs_of
from prefopt.data.tokens import TokenRecord
from prefopt.engine.cpu import keep_large_buffers
from prefopt.engine.forward import unwrap
from prefopt.engine.gates import choose_layout
from prefopt.engine.image_probes import blank_tree
from prefopt.engine.layout import Layout
from prefopt.engine.limits import check_length
from prefopt.engine.packing import Indices, Packer, epoch_order
from prefopt.engine.randomness import remove_randomness
from prefopt.engine.reference.fingerprint import fingerprint
from prefopt.engine.reference.store import ReferenceStore, store_root
from prefopt.engine.reference.table import ReferenceTable, reference_table
from prefopt.errors import Stopped, ThresholdError, UserError
from prefopt.models.adapters import twin
from prefopt.plugin import Loss, Needs, Vocab
from prefopt.train import fsdp
from prefopt.train.arguments import autocast, early_stopping, training_arguments
from prefopt.train.batch_config import BatchConfig
from prefopt.train.batches import Batcher
from prefopt.train.loop import PreferenceTrainer
from prefopt.train.on_policy import own_samples
from prefopt.train.settings import Parts, RunReference, Settings
from prefopt.train.setup import (
    check_images,
    check_kind,
    check_options,
    check_router_loss,
    check_same_weights,
    cost_of,
    order_seed,
    policies,
    precision,
)
from prefopt.train.sources.feed import Feed
from prefopt.train.sources.offline import Offline

Clock = Callable[[float, float], None]  # gets wall-clock seconds and CPU seconds


@dataclass(frozen=True, kw_only=True)
class Result:
    """What training gives back.

    Attributes:
        trainer: with the tuned `model`, and `state.log_history`.
        before, after: figures on the held-out records (empty without any), names without the `eval_` prefix.
        seconds: of training alone: its steps.
        reference_seconds: of the reference's log-probs before it; 0 for a loss that reads none ahead.
        reference_processor_seconds: likewise, the CPU time of this process, summed over cores.
        reference_hits, reference_misses: log-probs of the reference found in the store, and computed.
    """

    trainer: PreferenceTrainer
    before: dict[str, float]
    after: dict[str, float]
    seconds: float
    reference_seconds: float
    reference_processor_seconds: float
    reference_hits: int
    reference_misses: int


def train(
    model: Any,
    loss: Loss,
    records: Sequence[TokenRecord],
    *,
    output_dir: str | Path,
    resume: str | Path | None = None,
    **settings: Any,
) -> Result:
    """Tune `model` in place with `loss` on `records`.

    Args:
        model: a transformers causal language model, or for a loss that trains a reward model a sequence classifier
            with one output; or a PEFT model around one.
        loss: a plugin, such as `prefopt.losses.registry.load("dpo")`.
        records: pairs, unpaired completions, lists or demonstrations in tokens (`prefopt.data.prepare`).
        output_dir: for checkpoints.
        resume: a checkpoint folder.
        **settings: `eval`, `batch`, `seed`, `reference`, `value_model`, `store`, `tokenizer`, `callbacks`, `sentinels`,
            `probe`, `progress`, `reward`, `rollout`, `log_ratios` and `look`, as `prefopt.train.settings.Settings` has
            them; and `learning_rate`, `max_steps` and the other options of `prefopt.train.arguments`.

    Raises:
        UserError: what was given does not fit together.
        TrainingError: the run is wrong, and was stopped.
        ThresholdError: a sentinel stopped it (`SentinelConfig.stop`).
        Stopped: a signal came, and `prefopt.train.signals.Signals` among the callbacks waited for it.
    """
    given = Settings.of(output_dir=output_dir, **settings)
    reference_pass: list[tuple[float, ...]] = [(0.0, 0.0)]
    trainer = _build(model, loss, records, given, lambda *spent: reference_pass.append(spent))
    if resume is not None:
        trainer.check_identity(resume)  # before anything is logged
    before = trainer.evaluate() if given.eval is not None else {}
    start = time.perf_counter()
    try:
        trainer.train(resume)
        seconds = time.perf_counter() - start
        found = trainer.sentinels.findings
        if trainer.sentinels.config.stop and found:
            raise ThresholdError(f"stopped after step {trainer.state.global_step}: {found[-1].text}")
        after = trainer.evaluate() if given.eval is not None else {}
    except Stopped:
        trainer.save_last_step()
        raise
    finally:
        for callback in given.callbacks:
            if hasattr(callback, "close"):
                callback.close()
    return Result(
        trainer=trainer,
        before={k.removeprefix("eval_"): v for k, v in before.items()},
        after={k.removeprefix("eval_"): v for k, v in after.items()},
        seconds=seconds,
        reference_seconds=reference_pass[-1][0],
        reference_processor_seconds=reference_pass[-1][1],
        reference_hits=sum(table.hits for table in trainer.tables.values()),
        reference_misses=sum(table.misses for table in trainer.tables.values()),
    )


def build(model: Any, loss: Loss, records: Sequence[TokenRecord], **settings: Any) -> PreferenceTrainer:
    """The trainer of `train`, ready but not started; `settings` as there.

    Held-out records are scored under the reference for every loss, so that all methods report the same figures;
    training records only for losses that read it.

    Without `reference`, the reference is `model` as it is given here, adapters included: after LoRA SFT that is the SFT
    model, and with a fresh adapter the model below it. A live reference is then a copy of it that shares the weights
    which an adapter leaves frozen.
    """
    return _build(model, loss, records, Settings.of(**settings), lambda *spent: None)


def _build(model: Any, loss: Loss, records: Sequence[TokenRecord], given: Settings, clock: Clock) -> PreferenceTrainer:
    """`clock` is called with the time of the reference pass, if there is one: fingerprint, store and forwards."""
    needs, batch = loss.needs, given.batch or BatchConfig()
    check_limits(batch.LIMITS, batch, "batch")
    if needs.only_own_samples and given.reward is None:
        raise UserError("this loss learns from the policy's own samples: train with source=rollouts and a reward")
    if given.value_model is not None and not needs.values:
        raise UserError("this loss has no value model: leave value_model out")
    check_kind(model, needs)
    check_router_loss(model, given.trainer.get("router_aux_loss") or 0.0)
    args = training_arguments(given.output_dir, seed=given.seed, records=batch.records, **given.trainer)
    check_options(args, loss, () if given.probe is None else (str(args.metric_for_best_model),))
    fsdp.check(args, moving_reference=needs.moving_reference)
    blank = check_images(model, args, {"train": records, "eval": given.eval}, sampled=given.reward is not None,
                         router=bool(given.trainer.get("router_aux_loss")))  # fmt: skip
    if args.device.type == "cpu":
        keep_large_buffers()
    given = replace(given, batch=batch, callbacks=[*given.callbacks, *early_stopping(given.trainer)])
    parts = (
        own_samples(model, loss, records, given, args)
        if given.reward is not None
        else _offline(model, loss, records, given, args, clock)
    )
    remove_randomness(parts.policy)
    batcher = Batcher(needs, parts.policy.layout.layout, parts.max_tokens, cost_of(model),
                      (args.process_index, args.world_size), inputs_of(unwrap(model)))  # fmt: skip
    if blank:
        batcher.images, batcher.blank = blank_tree(model, closing=needs.reward_model)
    return PreferenceTrainer(parts.policy, loss, args, parts.sources, batcher, parts.reference, given)


def _offline(
    model: Any, loss: Loss, records: Sequence[TokenRecord], given: Settings, args: TrainingArguments,
    clock: Clock,
) -> Parts:  # fmt: skip
    """What learns from a data set: the order of its records, and the reference's log-probs of them."""
    needs, batch = loss.needs, given.batch or BatchConfig()
    feeds = {"train": Feed(records, needs, whole=False, seed=given.seed)}
    if given.eval is not None:
        feeds["eval"] = Feed(given.eval, needs, whole=True, seed=given.seed)
    layout = choose_layout(model, batch.layout).layout
    batch = batch.settled(args.device.type, feeds.values(), layout)
    for feed in feeds.values():  # what cannot be packed or scored is refused before the reference is computed
        _check_lengths(feed, model, batch, layout)
    name, tables = _reference_pass(model, feeds, needs, given, args, batch, clock)
    is_start = given.reference is None or name == fingerprint(model, precision(args))
    live = given.reference
    if needs.moving_reference or (live is None and needs.live_reference):
        live = twin(model, given.reference)
    live = live if needs.live_reference else None
    policy, live_policy = policies(model, live, batch.layout)
    sources = {
        split: Offline(feed, records=batch.records, seed=order_seed(args), shuffle=split == "train",
                       reference=tables.get(split))
        for split, feed in feeds.items()
    }  # fmt: skip
    reference = RunReference(name=name, tables=tables, policy=live_policy, is_start=is_start)
    return Parts(policy, batch.budget(args.device.type), sources, reference)


def _check_lengths(feed: Feed, model: Any, batch: BatchConfig, layout: Layout) -> None:
    """Raise UserError for a record that no forward can take."""
    lengths = feed.lengths()
    assert batch.max_tokens is not None  # settled
    Packer(lengths, max_tokens=batch.max_tokens, layout=layout)
    at = int(lengths.widths().argmax())
    which = at if lengths.ids is None else repr(lengths.ids[at])
    check_length(unwrap(model), int(lengths.widths()[at]) + 1, f"record {which}: a sequence")


def _read(feed: Feed, args: TrainingArguments, batch: BatchConfig) -> Indices | None:
    """The records that the steps of a run shorter than one epoch read; None: all."""
    size = len(feed)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * math.ceil(size / batch.records))
    read = steps * batch.records
    return epoch_order(size, order_seed(args), 0)[:read] if read < size else None


def _reference_pass(
    model: Any, feeds: Mapping[str, Feed], needs: Needs, given: Settings, args: TrainingArguments, batch: BatchConfig,
    clock: Clock,
) -> tuple[str | None, dict[str, ReferenceTable]]:  # fmt: skip
    """The reference's fingerprint and log-probs, of the splits that need them ahead of time."""
    read = needs.reference or given.log_ratios
    scored = {s: f for s, f in feeds.items() if s == "eval" or (read and not needs.moving_reference)}
    if not scored or needs.reward_model:
        return None, {}
    referee = (model if given.reference is None else given.reference).to(args.device)
    choose_layout(referee, batch.layout)
    about = {"model": referee.config.name_or_path, "dtype": str(referee.dtype)}
    start = time.perf_counter(), time.process_time()
    name = fingerprint(referee, precision(args))
    check_same_weights(name)
    store = ReferenceStore(store_root(given.store), name, about)
    tables = {}
    for split, feed in scored.items():
        with autocast(args):
            tables[split] = reference_table(
                referee,
                feed,
                store,
                entropy=Vocab.REF_ENTROPY in needs.vocab,
                process=(args.process_index, args.world_size),
                barrier=PartialState().wait_for_everyone,
                progress=given.progress,
                read=_read(feed, args, batch) if split == "train" else None,
            )
    clock(time.perf_counter() - start[0], time.process_time() - start[1])
    return name, tables
