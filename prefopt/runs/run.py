"""Runs one training, from its configuration to a folder of results."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefopt.common.files import write_json, write_lines
from prefopt.common.locks import locked_folder
from prefopt.common.memory_usage import peak_memory_gib
from prefopt.common.processes import from_first_process, is_first_process
from prefopt.common.quiet import quiet
from prefopt.common.redact import printable, redact, redacted
from prefopt.config.run_config import RunConfig
from prefopt.config.tracking import log_options, log_texts, tracker, trainer_options
from prefopt.data.account import account
from prefopt.data.jinja_source import trained_template
from prefopt.data.prepare import FEWEST, HELD_OUT, MOST, Prepared
from prefopt.engine.cpu import give_back
from prefopt.errors import Stopped, ThresholdError
from prefopt.evaluate.held_out import HeldOut, of_table, score, write_rows
from prefopt.evaluate.reward_figures import figures
from prefopt.evaluate.texts import (
    DRIFT,
    Drift,
    drift_figures,
    drift_from_start,
    greedy_texts,
    reward_figures,
    sampled_rewards,
    side_by_side,
)
from prefopt.models.load import load_policy, load_reference, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.models.processor import copy_processor
from prefopt.models.reward_model import load_reward_model, load_value_model, write_facts
from prefopt.rewards.reward import Reward
from prefopt.runs.manifest import check_repetition, id_of, manifest, start_of, write_record
from prefopt.runs.progress import RunProgress, run_progress
from prefopt.runs.resolve import prepared_data, resolved
from prefopt.runs.resolve_reward import resolved_reward
from prefopt.runs.resume import checkpoint_to_resume
from prefopt.runs.sampling_rounds import with_samples
from prefopt.train import Result, train
from prefopt.train.arguments import autocast, precision_advice, training_arguments
from prefopt.train.callbacks import AtBeginning, MetricsFile, RolloutsFile
from prefopt.train.checkpoints import writing
from prefopt.train.failures import lost_processes
from prefopt.train.fsdp import load_whole_models
from prefopt.train.sentinels import Sentinels
from prefopt.train.setup import check_options
from prefopt.train.signals import Signals

Log = Callable[[str], None]


def run(
    config: RunConfig, *, log: Log | None = None, callbacks: Sequence[Any] = (),
    repeats: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train as configured, and write into `output_dir`: `config.yaml`, `manifest.json`, `rejections.jsonl`,
    `metrics.jsonl`, `samples.jsonl`, `heldout.jsonl`, `final/` (which plain transformers loads) and `summary.json`;
    of a run on the policy's own samples `rollouts.jsonl` instead of `heldout.jsonl`; with `source=samples` also the
    samples and the records made of them (`prefopt.runs.sampling_rounds`); of a reward model `heldout.jsonl` with scores
    in place of log-probs, and no samples.

    Args:
        config: the configuration of the run.
        log: called with lines for a reader; None prints them as `config.progress` says.
        callbacks: transformers' callbacks, beside the run's own.
        repeats: the manifest of a run that this one repeats, with the same records and weights.

    Returns:
        The summary: figures before and after, counts, seconds.

    Raises:
        UserError: something given cannot be used.
        TrainingError: the run is wrong, and was stopped.
        ThresholdError: a sentinel stopped it (`sentinels.stop`).
        Stopped: a signal came; what there was is saved.
    """
    load_whole_models()
    check_training(config)
    progress = run_progress(config.progress, config.loss_name)
    first = is_first_process()

    def log_redacted(line: str) -> None:
        if first:
            (log or progress.print)(printable(redact(line)))

    try:
        with lost_processes(), tracker(), Signals(log_redacted) as signals:
            config = _in_one_folder(config)
            with locked_folder(config.output_dir) if first else nullcontext():
                config = with_samples(config, log_redacted)
                return _run(config, log_redacted, progress, signals, callbacks, repeats)
    finally:
        give_back()  # a sweep continues in this process, and must not keep this run's memory


def check_training(config: RunConfig) -> None:
    """Check the options of the training before anything is made, and let the processes find each other.

    Raises:
        UserError: no optimizer, schedule or metric of the best model can be made of them.
    """
    args = training_arguments(config.output_dir, seed=config.seed, records=config.batch.records, **config.trainer)
    check_options(args, config.loss, DRIFT if config.sentinels.measure else ())


def _in_one_folder(config: RunConfig) -> RunConfig:
    """The configuration with the first process's `output_dir`: a name with the time in it differs between them."""
    shared = Path(from_first_process(lambda: str(config.output_dir)))
    if shared != config.output_dir:
        with suppress(OSError):
            config.output_dir.rmdir()  # made for this process alone, and empty
    return dataclasses.replace(config, output_dir=shared)


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """What a run trains and trains on; `config` has models that can be loaded (`prefopt.runs.resolve`)."""

    config: RunConfig
    tokenizer: Any
    prepared: Prepared
    model: Any
    start: Mapping[str, Any]  # `prefopt.runs.manifest.start_of`
    reward: Reward | None

    @property
    def prompts(self) -> Any:
        """The held-out records whose prompts the model continues; None of a reward model, which writes no texts."""
        return None if self.config.loss.needs.reward_model else self.prepared.eval


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What is measured of the tuned model; `held_out` is of before and after, None where nothing is held out."""

    drift: Drift | None
    rewards: NDArray[np.float64] | None
    held_out: tuple[HeldOut, HeldOut] | None
    texts: list[tuple[str, str]]


def _run(
    config: RunConfig, log: Log, progress: RunProgress, signals: Signals, callbacks: Sequence[Any],
    repeats: Mapping[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    start = time.perf_counter()
    quiet(keep_data_bars=True)
    out = config.output_dir
    checkpoint = checkpoint_to_resume(out, config.resume, log)
    run_id = id_of(out, checkpoint)
    tracking = trainer_options(config.tracking, out, run_id)
    loaded = _load(config, log)
    prepared = loaded.prepared
    recording = _record(config, loaded, checkpoint, run_id, repeats)
    texts = greedy_texts(config, loaded.model, loaded.tokenizer, loaded.prompts)
    rewards = sampled_rewards(config, loaded.model, loaded.tokenizer, loaded.prompts, loaded.reward)
    first_scores = _scores(loaded, loaded.model) if config.loss.needs.reward_model else None
    sentinels = Sentinels(config.sentinels, log)
    recording = [*recording, AtBeginning(partial(log_options, redacted(config.plain())))]
    callbacks = [*recording, MetricsFile(out / "metrics.jsonl"), *callbacks, progress, signals]
    result = _train(loaded, progress, checkpoint, callbacks=callbacks, sentinels=sentinels, **tracking)
    try:
        _save_final(out, result, loaded.tokenizer, loaded.config.model, signals)
        measured = _measure(loaded, result, first_scores)
        of_scores = _reward_model_figures(out, loaded, measured)
    except Stopped:
        result.trainer.save_last_step()
        raise
    summary = {
        **_summary(config, result, rewards, measured),
        **of_scores,
        "counts": prepared.counts,
        "sentinels": [finding.plain() for finding in sentinels.findings],
        "memory_gib": round(peak_memory_gib(), 3),
        "seconds": {"total": round(time.perf_counter() - start, 2), "train": round(result.seconds, 2)},
    }
    if is_first_process():
        with signals.patience():
            write_lines(out / "samples.jsonl", written := side_by_side(texts, measured.texts))
            log_texts("texts", written)
            if measured.held_out is not None:
                write_rows(out / "heldout.jsonl", *measured.held_out)
            write_json(out / "summary.json", summary)
    if config.sentinels.stop and sentinels.findings:
        raise ThresholdError(f"the run has ended and is whole, but {sentinels.findings[-1].text}")
    return summary


def _load(config: RunConfig, log: Log) -> _Loaded:
    reward = resolved_reward(config)
    loadable = resolved(config)
    tokenizer = load_tokenizer(loadable.model)
    prepared = prepared_data(config, tokenizer)
    if config.loss.needs.reward_model:
        model = load_reward_model(loadable.model, config.peft, tokenizer=tokenizer, seed=config.seed)
    else:
        model = load_policy(loadable.model, config.peft, seed=config.seed)
    log(_counts_line(prepared))
    for warning in prepared.warnings:
        log(f"warning: {warning}")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator and (advice := precision_advice(accelerator.type, config.model.dtype, config.trainer)):
        log(advice)
    start = start_of(config, tokenizer, model)
    template = trained_template(tokenizer, config.data)  # whoever uses the model must write prompts as in training
    if template is not None or config.loss.needs.reward_model:
        tokenizer.chat_template = template
    return _Loaded(config=loadable, tokenizer=tokenizer, prepared=prepared, model=model, start=start, reward=reward)


def _record(
    config: RunConfig, loaded: _Loaded, checkpoint: Path | None, run_id: str, repeats: Mapping[str, Any] | None
) -> list[AtBeginning]:
    """Write the record of the run, for a resume only when training begins: one that is impossible changes nothing.

    Returns:
        The callback that does it.
    """
    if not is_first_process():
        return []
    facts = manifest(config, loaded.prepared, {**loaded.start, "run_id": run_id}, checkpoint)
    if repeats is not None:
        check_repetition(facts, repeats)
    write = partial(write_record, config, loaded.prepared, facts)
    if checkpoint is not None:
        return [AtBeginning(write)]
    write()
    return []


def _train(loaded: _Loaded, progress: RunProgress, checkpoint: Path | None, **options: Any) -> Result:
    config, prepared, tokenizer = loaded.config, loaded.prepared, loaded.tokenizer
    samples = RolloutsFile(config.output_dir / "rollouts.jsonl") if loaded.reward is not None else None
    if samples is not None:
        options["callbacks"] = [*options["callbacks"], samples]
        options |= {"reward": loaded.reward, "rollout": config.rollout}
        options |= {"look": samples.add} if is_first_process() else {}

    def measure_drift(policy: Any) -> dict[str, float]:
        return drift_figures(drift_from_start(config, policy, tokenizer, loaded.prompts))

    with progress.reference() as advance:
        return train(
            loaded.model,
            config.loss,
            prepared.train,
            output_dir=config.output_dir,
            eval=prepared.eval if samples is None else None,
            batch=config.batch,
            seed=config.seed,
            reference=load_reference(config.model, loaded.model) if config.model.reference else None,
            value_model=load_value_model(config.model, config.peft, tokenizer=tokenizer, seed=config.seed),
            store=Path(config.reference_folder) if config.reference_folder else None,
            tokenizer=tokenizer,
            weights=loaded.start["weights"],
            origin=loaded.start["origin"],
            probe=measure_drift if config.sentinels.measure else None,
            resume=checkpoint,
            progress=advance,
            **options,
            **config.trainer,
        )


def _save_final(out: Path, result: Result, tokenizer: Any, model: ModelConfig, signals: Signals) -> None:
    first = is_first_process()
    with signals.patience(), writing(out / "final", writes=first) as folder:
        result.trainer.save_model(str(folder))
        if first:
            tokenizer.save_pretrained(folder)
            copy_processor(model.path, folder, model.revision)
    signals.check()


def _scores(loaded: _Loaded, model: Any) -> HeldOut | None:
    """The held-out records under a model as it is now; None where nothing is held out."""
    records = loaded.prepared.eval
    if records is None:
        return None
    device = next(model.parameters()).device.type
    return score(model, records, max_tokens=loaded.config.batch.budget(device))


def _reward_model_figures(out: Path, loaded: _Loaded, measured: _Measured) -> dict[str, Any]:
    """What the summary says of a reward model; the figures also lie beside it, for whoever uses it."""
    if not loaded.config.loss.needs.reward_model or measured.held_out is None:
        return {}
    before, after = map(figures, measured.held_out)
    if is_first_process():
        write_facts(out / "final", after)
    return {"reward_model": {"before": before, "after": after}}


def _measure(loaded: _Loaded, result: Result, first_scores: HeldOut | None) -> _Measured:
    """`first_scores` are those of a reward model before training."""
    config, records, trainer = loaded.config, loaded.prepared.eval, result.trainer
    policy = trainer.policy
    drift = drift_from_start(config, policy, loaded.tokenizer, loaded.prompts)
    if drift is not None:
        trainer.log(drift_figures(drift, "eval_"))  # the sentinels look at it, too
    held_out = None
    if records is not None and loaded.reward is None:
        before = first_scores or of_table(records, trainer.tables["eval"])
        with autocast(trainer.args):
            after = _scores(loaded, policy)
        assert after is not None
        held_out = before, after
    texts = greedy_texts(config, policy, loaded.tokenizer, loaded.prompts)
    rewards = sampled_rewards(config, policy, loaded.tokenizer, loaded.prompts, loaded.reward)
    return _Measured(drift=drift, rewards=rewards, held_out=held_out, texts=texts)


def _summary(
    config: RunConfig, result: Result, rewards: NDArray[np.float64] | None, measured: _Measured
) -> dict[str, Any]:
    """What `summary.json` says of training and its figures; `rewards` are of before."""
    trainer, drift = result.trainer, measured.drift
    after: dict[str, float] = {} if drift is None else {"kl": drift.kl.value, "kl_sem": drift.kl.se}
    rewarded = reward_figures(rewards, measured.rewards)
    if rewarded:
        after["reward"] = rewarded["reward"]["value"]
    return {
        "method": config.loss_name,
        "before": result.before,
        "after": result.after | after,
        "texts": (drift.plain() if drift is not None else {}) | rewarded,
        "train": _last_figures(trainer.state.log_history),
        "steps": trainer.state.global_step,
        "layout": dataclasses.asdict(trainer.layout),
        "reference": {"found": result.reference_hits, "computed": result.reference_misses},
    }


def _last_figures(history: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    return next((h for h in reversed(history) if "loss" in h and "learning_rate" in h), {})


def _counts_line(prepared: Prepared) -> str:
    line = f"data: {len(prepared.train)} records to train on"
    if prepared.eval is not None:
        line += f", {len(prepared.eval)} held out"
    by_default = prepared.counts.get("held_out_by_default")
    if by_default == 0:
        line += ", nothing held out (too few prompts for a share of them; name other records with data.eval_path)"
    elif by_default is not None:
        line += f" ({100 * HELD_OUT:g} % of the prompts, {FEWEST} to {MOST}, at most a fifth; "
        line += "data.eval_records=0 trains on all)"
    reasons = Counter(r.reason for r in prepared.rejections)
    if reasons:
        line += f", {sum(reasons.values())} rejected ({', '.join(f'{r}: {n}' for r, n in sorted(reasons.items()))}; "
        line += "see rejections.jsonl)"
    return "\n".join([line, *account(prepared.counts)])
