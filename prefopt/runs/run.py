"""One run, from its configuration to a folder of results."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.common.files import write_json, write_lines
from prefopt.common.locks import locked_folder
from prefopt.common.quiet import quiet
from prefopt.common.redact import printable, redact
from prefopt.config.run_config import RunConfig
from prefopt.config.tracking import trainer_options
from prefopt.errors import Stopped, ThresholdError
from prefopt.evaluate import held_out
from prefopt.evaluate.texts import distance_to_start, greedy_texts, side_by_side, text_figures
from prefopt.runs.folder import checkpoint_to_resume
from prefopt.runs.manifest import manifest
from prefopt.train.sentinels import Sentinels

if TYPE_CHECKING:
    from prefopt.runs.progress import Watch
    from prefopt.train.signals import Signals


def run(
    config: RunConfig, *, say: Callable[[str], None] | None = None, callbacks: Sequence[Any] = ()
) -> dict[str, Any]:
    """Train as configured, and leave in `output_dir`: `config.yaml`, `manifest.json`, `rejections.jsonl`,
    `metrics.jsonl`, `samples.jsonl`, `heldout.jsonl`, `final/` (which plain transformers loads), `summary.json` and,
    made from all of these, `report.html`.

    Args:
        config: of the run.
        say: called with lines for a person; None tells them as `config.progress` says.
        callbacks: of transformers' kind, beside the run's own.

    Returns:
        The summary: figures before and after, counts, seconds.

    Raises:
        UserError: something given cannot be used.
        TrainingError: the run is wrong, and was stopped.
        ThresholdError: a sentinel stopped it (`sentinels.stop`).
        Stopped: a signal came; what there was is saved.
    """
    from prefopt.engine.cpu.allocator import give_back
    from prefopt.runs.progress import first_process, watch
    from prefopt.train.arguments import training_arguments
    from prefopt.train.fsdp import load_whole_models
    from prefopt.train.signals import Signals
    from prefopt.train.together import Together

    load_whole_models()
    # Options are refused before anything is made; the processes find each other as the options say.
    training_arguments(config.output_dir, seed=config.seed, records=config.batch.records, **config.trainer)
    first = first_process()
    told = watch(config.progress, config.loss_name)

    def tell(line: str) -> None:
        if first:
            (say or told.say)(printable(redact(line)))

    try:
        with Together(told.warn) as together, Signals(tell) as signals:
            config = _in_one_folder(config)
            with locked_folder(config.output_dir) if first else nullcontext():
                return _run(config, tell, told, signals, [*callbacks, together], first)
    finally:
        give_back()  # a process that goes on, in a sweep, does not keep what this run took


def _in_one_folder(config: RunConfig) -> RunConfig:
    """The configuration with the first process's `output_dir`: a name with the time in it differs between them."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    if PartialState().num_processes == 1:
        return config
    mine, names = config.output_dir, [str(config.output_dir)]
    broadcast_object_list(names)
    if str(mine) != names[0]:
        with suppress(OSError):
            mine.rmdir()  # made for this process alone, and empty
    return dataclasses.replace(config, output_dir=Path(names[0]))


def _run(
    config: RunConfig,
    say: Callable[[str], None],
    told: Watch,
    signals: Signals,
    callbacks: Sequence[Any],
    first_process: bool,
) -> dict[str, Any]:
    from prefopt.models.load import load_policy, load_reference, load_tokenizer
    from prefopt.report.run import write_run_page
    from prefopt.runs.progress import peak_memory_gib
    from prefopt.train import train
    from prefopt.train.arguments import autocast
    from prefopt.train.callbacks import AtBeginning, MetricsFile
    from prefopt.train.checkpoints import writing

    start = time.perf_counter()
    quiet(keep_data_bars=True)
    out = config.output_dir
    tracking = trainer_options(config.tracking, out)
    checkpoint = checkpoint_to_resume(out, config.resume, say)
    tokenizer = load_tokenizer(config.model)
    prepared = prepared_data(config, tokenizer)
    model = load_policy(config.model, config.peft, seed=config.seed)
    record: list[Any] = []
    if first_process:
        leave_record = manifest(config, prepared, model, checkpoint)
        if checkpoint is None:
            leave_record()
        else:  # a resume that is refused leaves the record of the run as it is
            record = [AtBeginning(leave_record)]
    say(_counts_line(prepared))
    for warning in prepared.warnings:
        say(f"warning: {warning}")
    before_texts = greedy_texts(config, model, tokenizer, prepared.eval)
    watchers = [*record, MetricsFile(out / "metrics.jsonl"), *callbacks, told, signals]
    sentinels = Sentinels(config.sentinels, say)

    def probe(policy: Any) -> dict[str, float]:
        return text_figures(distance_to_start(config, policy, tokenizer, prepared.eval))

    with told.reference() as progress:
        result = train(
            model,
            config.loss,
            prepared.train,
            output_dir=out,
            eval=prepared.eval,
            batch=config.batch,
            seed=config.seed,
            reference=load_reference(config.model, model) if config.model.reference else None,
            store=Path(config.reference_folder) if config.reference_folder else None,
            tokenizer=tokenizer,
            callbacks=watchers,
            sentinels=sentinels,
            probe=probe if config.sentinels.measure else None,
            resume=checkpoint,
            progress=progress,
            **tracking,
            **config.trainer,
        )
    try:
        with signals.patience(), writing(out / "final", writes=first_process) as folder:
            result.trainer.save_model(str(folder))
            if first_process:
                tokenizer.save_pretrained(folder)
        signals.check()
        far = distance_to_start(config, result.trainer.policy, tokenizer, prepared.eval)
        after = result.after | ({} if far is None else {"kl": far.kl.value, "kl_sem": far.kl.se})
        if far is not None:
            result.trainer.log(text_figures(far, "eval_"))  # the sentinels look at it, too
        if prepared.eval is not None:
            table = result.trainer.tables["eval"]
            assert table is not None
            base = held_out.of_table(prepared.eval, table)
            budget = config.batch.budget(model.device.type)
            with autocast(result.trainer.args):
                scored = held_out.score(result.trainer.policy, prepared.eval, max_tokens=budget)
        after_texts = greedy_texts(config, result.trainer.policy, tokenizer, prepared.eval)
    except Stopped:
        result.trainer.keep()
        raise
    summary = {
        "method": config.loss_name,
        "before": result.before,
        "after": after,
        "texts": far.plain() if far is not None else {},
        "train": _last_figures(result.trainer.state.log_history),
        "steps": result.trainer.state.global_step,
        "layout": dataclasses.asdict(result.trainer.layout),
        "counts": prepared.counts,
        "sentinels": [finding.plain() for finding in sentinels.findings],
        "reference": {"found": result.reference_hits, "computed": result.reference_misses},
        "memory_gib": round(peak_memory_gib(), 3),
        "seconds": {"total": round(time.perf_counter() - start, 2), "train": round(result.seconds, 2)},
    }
    if first_process:
        with signals.patience():
            write_lines(out / "samples.jsonl", side_by_side(before_texts, after_texts))
            if prepared.eval is not None:
                held_out.write_rows(out / "heldout.jsonl", base, scored)
            write_json(out / "summary.json", summary)
            try:
                write_run_page(out)
            except Exception as error:  # the run is whole without its page
                say(f"warning: report.html could not be made ({error}); `prefopt report {out}` tries again")
    if config.sentinels.stop and sentinels.findings:
        raise ThresholdError(f"the run has ended and is whole, but {sentinels.findings[-1].text}")
    return summary


def prepared_data(config: RunConfig, tokenizer: Any) -> Any:
    """The configured data in tokens: `prefopt.data.Prepared`."""
    from prefopt.data import prepare

    data = config.data
    if data.path == "world":
        from prefopt import worlds

        files = worlds.resolve(data.world)
        held_out = data.eval_path or data.eval_records or data.eval_fraction
        eval_path = data.eval_path if held_out else str(files.validation)
        data = dataclasses.replace(data, path=str(files.train), eval_path=eval_path, world={})
    needs = config.loss.needs
    control_text = config.loss.control_text if needs.control_text else None  # type: ignore[attr-defined]
    return prepare(data, tokenizer, needs.data, control_text=control_text)


def _counts_line(prepared: Any) -> str:
    line = f"data: {len(prepared.train)} records to train on"
    if prepared.eval is not None:
        line += f", {len(prepared.eval)} held out"
    reasons = Counter(r.reason for r in prepared.rejections)
    if reasons:
        line += f", {sum(reasons.values())} rejected ({', '.join(f'{r}: {n}' for r, n in sorted(reasons.items()))}; "
        line += "see rejections.jsonl)"
    return line


def _last_figures(history: list[dict[str, float]]) -> dict[str, float]:
    return next((h for h in reversed(history) if "loss" in h and "learning_rate" in h), {})
