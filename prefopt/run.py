"""One run, from its configuration to a folder of results."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prefopt.data.config import DataConfig
from prefopt.errors import UserError
from prefopt.models import ModelConfig
from prefopt.plugin import Loss
from prefopt.trainer.batches import BatchConfig

VERSIONS = ("prefopt", "torch", "transformers", "accelerate", "datasets", "hydra-core", "peft", "safetensors", "numpy")


@dataclass(kw_only=True)
class TrackingConfig:
    """Where figures go besides `metrics.jsonl`. The defaults of the Hydra group `tracking`."""

    report_to: str = "none"  # wandb, tensorboard, or another of transformers' integrations
    project: str = "prefopt"  # wandb
    mode: str | None = None  # wandb: online, offline, disabled; None leaves it to wandb
    run_name: str | None = None


@dataclass(kw_only=True)
class EvaluationConfig:
    """What is written by the model after (and before) training, on held-out prompts. Defaults of `evaluation`."""

    texts: int = 3  # prompts continued greedily before and after, to be read
    kl_prompts: int = 32  # prompts continued at temperature 1, to measure KL(policy || reference)
    max_new_tokens: int = 128


@dataclass(kw_only=True)
class RunConfig:
    """Everything that a run depends on."""

    loss: Loss
    loss_name: str
    output_dir: Path
    model: ModelConfig
    data: DataConfig
    batch: BatchConfig = field(default_factory=BatchConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    reference_folder: str | None = None  # None: in prefopt's cache
    resume: str = "auto"  # auto | never | a checkpoint folder
    seed: int = 0

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        known = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        nested = {k: dataclasses.asdict(known[k]) for k in ("model", "data", "batch", "tracking", "evaluation")}
        loss = {"name": self.loss_name, **dataclasses.asdict(self.loss)}  # type: ignore[call-overload]
        plain: dict[str, Any] = json.loads(json.dumps(known | nested | {"loss": loss}, default=str))
        del plain["loss_name"]
        return plain


def run(config: RunConfig, *, say: Any = print) -> dict[str, Any]:
    """Train as configured, and leave in `output_dir`: `config.yaml`, `manifest.json`, `rejections.jsonl`,
    `metrics.jsonl`, `samples.jsonl`, `final/` (which plain transformers loads) and, last, `summary.json`.

    Args:
        config: of the run.
        say: called with lines for a person.

    Returns:
        The summary: figures before and after, counts, seconds.

    Raises:
        UserError: something given cannot be used.
        TrainingError: the run is wrong, and was stopped.
    """
    import datasets
    from transformers.utils import logging as transformers_logging

    from prefopt.models import load_model, load_tokenizer
    from prefopt.trainer import train
    from prefopt.trainer.callbacks import MetricsFile, Progress
    from prefopt.trainer.checkpoints import writing

    start = time.perf_counter()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    out = config.output_dir
    checkpoint = _checkpoint(config)
    tokenizer = load_tokenizer(config.model)
    prepared = prepared_data(config, tokenizer)
    model = load_model(config.model)
    first_process = os.environ.get("RANK", "0") == "0"  # torchrun and accelerate set it
    if first_process:
        out.mkdir(parents=True, exist_ok=True)
        _write_facts(config, prepared)
    else:
        say = _silent
    say(_counts_line(prepared))
    for warning in prepared.warnings:
        say(f"warning: {warning}")
    if checkpoint is not None:
        say(f"resuming from {checkpoint}")
    before_texts = _texts(config, model, tokenizer, prepared.eval)
    tracking = _tracking(config)
    watchers = [MetricsFile(out / "metrics.jsonl"), Progress(config.loss_name)]
    with _reference_bar(config.loss_name) as progress:
        result = train(
            model,
            config.loss,
            prepared.train,
            output_dir=out,
            eval=prepared.eval,
            batch=config.batch,
            seed=config.seed,
            reference=load_model(config.model, config.model.reference) if config.model.reference else None,
            store=Path(config.reference_folder) if config.reference_folder else None,
            tokenizer=tokenizer,
            callbacks=watchers,
            resume=checkpoint,
            progress=progress,
            **tracking,
            **config.trainer,
        )
    with writing(out / "final", writes=first_process) as folder:
        result.trainer.save_model(str(folder))
        if first_process:
            tokenizer.save_pretrained(folder)
    after = dict(result.after)
    after |= _kl(config, model, tokenizer, prepared.eval)
    samples = _after_texts(config, model, tokenizer, prepared.eval, before_texts)
    summary = {
        "method": config.loss_name,
        "before": result.before,
        "after": after,
        "train": _last_figures(result.trainer.state.log_history),
        "steps": result.trainer.state.global_step,
        "layout": dataclasses.asdict(result.trainer.layout),
        "counts": prepared.counts,
        "reference": {"found": result.reference_hits, "computed": result.reference_misses},
        "seconds": {"total": round(time.perf_counter() - start, 2), "train": round(result.seconds, 2)},
    }
    if first_process:
        _write_lines(out / "samples.jsonl", samples)
        _write(out / "summary.json", json.dumps(summary, indent=1))
    return summary


def _silent(line: str) -> None:
    """What the other processes say."""


def prepared_data(config: RunConfig, tokenizer: Any) -> Any:
    """The configured data in tokens: `prefopt.data.Prepared`."""
    from prefopt.data import prepare

    data = config.data
    if data.path == "world":
        from prefopt import worlds

        files = worlds.resolve()
        held_out = data.eval_path or data.eval_records or data.eval_fraction
        data = dataclasses.replace(
            data, path=str(files.train), eval_path=data.eval_path if held_out else str(files.validation)
        )
    needs = config.loss.needs
    control_text = config.loss.control_text if needs.control_text else None  # type: ignore[attr-defined]
    return prepare(data, tokenizer, needs.data, control_text=control_text)


def _checkpoint(config: RunConfig) -> Path | None:
    """The checkpoint to go on from.

    Raises:
        UserError: the folder has a finished or another run, or no such checkpoint is there.
    """
    from prefopt.trainer.checkpoints import checkpoints

    out = config.output_dir
    if config.resume not in ("auto", "never"):
        folder = Path(config.resume)
        if not (folder / "trainer_state.json").is_file():
            raise UserError(f"resume={config.resume}: there is no checkpoint in that folder")
        return folder
    if (out / "summary.json").exists():
        raise UserError(f"output_dir={out} already has a finished run: choose another folder, or delete it")
    found = checkpoints(out)
    if config.resume == "auto":
        return found[-1] if found else None
    if found:
        raise UserError(f"resume=never, but output_dir={out} has checkpoints: choose another folder, or delete them")
    return None


def _tracking(config: RunConfig) -> dict[str, Any]:
    report_to = config.tracking.report_to
    if report_to == "none":
        return {}
    if report_to == "wandb":
        os.environ["WANDB_PROJECT"] = config.tracking.project
        os.environ["WANDB_DIR"] = str(config.output_dir)
        if config.tracking.mode:
            os.environ["WANDB_MODE"] = config.tracking.mode
    if report_to == "tensorboard":
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(config.output_dir / "tensorboard")
    return {"report_to": [report_to], "run_name": config.tracking.run_name or config.output_dir.name}


def _reference_bar(label: str) -> Any:
    """A context that gives a progress function for the reference pass; the bar appears with the first call."""
    from contextlib import contextmanager

    from rich.progress import Progress

    @contextmanager
    def bar() -> Any:
        shown = Progress(transient=True)
        task = shown.add_task(f"{label}: reference log-probs", total=None)

        def advance(count: int) -> None:
            shown.start()
            shown.update(task, advance=count)
            shown.stop()

        yield advance

    return bar()


def _write_facts(config: RunConfig, prepared: Any) -> None:
    from omegaconf import OmegaConf

    out = config.output_dir
    versions: dict[str, str | None] = {}
    for package in VERSIONS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    manifest = {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "data": {"schema": prepared.schema, "counts": prepared.counts},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    _write(out / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config.plain())))
    _write(out / "manifest.json", json.dumps(manifest, indent=1))
    _write_lines(out / "rejections.jsonl", [dataclasses.asdict(r) for r in prepared.rejections])


def _counts_line(prepared: Any) -> str:
    line = f"data: {len(prepared.train)} records to train on"
    if prepared.eval is not None:
        line += f", {len(prepared.eval)} held out"
    reasons = Counter(r.reason for r in prepared.rejections)
    if reasons:
        line += f", {sum(reasons.values())} rejected ({', '.join(f'{r}: {n}' for r, n in sorted(reasons.items()))}; "
        line += "see rejections.jsonl)"
    return line


def _prompts(held_out: Any, count: int) -> list[list[int]]:
    """The first prompts of the held-out records, each once."""
    found: dict[tuple[int, ...], None] = {}
    for i in range(len(held_out) if held_out is not None else 0):
        if len(found) == count:
            break
        found[tuple(held_out[i].prompt.tolist())] = None
    return [list(p) for p in found]


def _ends(model: Any, tokenizer: Any) -> list[int]:
    declared = getattr(model.generation_config, "eos_token_id", None)
    ends = {declared} if isinstance(declared, int) else set(declared or ())
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    return sorted(ends)


def _texts(config: RunConfig, model: Any, tokenizer: Any, held_out: Any) -> list[tuple[str, str]]:
    """(prompt, greedy continuation) of a few held-out prompts."""
    from prefopt.engine import generate

    prompts = _prompts(held_out, config.evaluation.texts)
    ends = _ends(model, tokenizer)
    if not prompts or not ends:
        return []
    texts = generate(model, prompts, max_new_tokens=config.evaluation.max_new_tokens, eos_token_id=ends, temperature=0)
    return [
        (tokenizer.decode(p), tokenizer.decode(t, skip_special_tokens=True))
        for p, t in zip(prompts, texts, strict=True)
    ]


def _after_texts(
    config: RunConfig, model: Any, tokenizer: Any, held_out: Any, before: list[tuple[str, str]]
) -> list[dict[str, str]]:
    after = _texts(config, model, tokenizer, held_out) if before else []
    return [{"prompt": p, "before": b, "after": a} for (p, b), (_, a) in zip(before, after, strict=True)]


def _kl(config: RunConfig, model: Any, tokenizer: Any, held_out: Any) -> dict[str, float]:
    """KL(policy || model at the start) on the policy's own continuations, per text, with its standard error."""
    from prefopt.engine import generate
    from prefopt.engine.divergence import divergence
    from prefopt.models import load_model

    prompts = _prompts(held_out, config.evaluation.kl_prompts)
    ends = _ends(model, tokenizer)
    if len(prompts) < 2 or not ends:
        return {}
    limit = config.evaluation.max_new_tokens
    texts = generate(model, prompts, max_new_tokens=limit, eos_token_id=ends, temperature=1.0, seed=config.seed)
    reference = load_model(config.model, config.model.reference or config.model.path).to(model.device)
    exact = divergence(model, reference, prompts, texts).exact_vocabulary
    return {"kl": float(exact.mean()), "kl_sem": float(exact.std(ddof=1) / len(exact) ** 0.5)}


def _last_figures(history: list[dict[str, float]]) -> dict[str, float]:
    return next((h for h in reversed(history) if "loss" in h and "learning_rate" in h), {})


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    _write(path, "".join(json.dumps(row) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    tmp = path.with_name(f"tmp-{path.name}")
    tmp.write_text(text)
    tmp.replace(path)
