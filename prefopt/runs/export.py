"""Exports the tuned model of a run to a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import GENERATION_CONFIG_NAME, logging

from prefopt.data.jinja_source import trained_template
from prefopt.data.templates import Chat, renderer
from prefopt.engine.generation import end_tokens
from prefopt.errors import UserError, first_line
from prefopt.models.export_folder import ExportCheck, export_model, upload
from prefopt.models.load import DTYPES, load_as_trained, load_model, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.models.reward_model import is_reward_model, open_reward_model
from prefopt.runs.run_folder import RunFolder

Card = Callable[[RunFolder, str, ExportCheck], str]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export` made."""

    folder: Path
    dtype: str
    check: ExportCheck
    scores: bool  # it is a reward model
    url: str | None  # of the hub, where it was pushed


def export(
    run: str | Path, to: str | Path, *, dtype: str | None = None, card: Card | None = None, push: str | None = None
) -> Exported:
    """Write the tuned model of a run to a folder of its own: weights with adapters merged in safetensors, tokenizer
    with the chat template of training, generation config, model card.

    The folder appears whole, after a fresh interpreter without prefopt has loaded it and found the run's log-probs, or
    not at all.

    Args:
        run: the folder of a finished run.
        to: the folder to make; it must be empty or absent.
        dtype: the dtype of the weights; None: as they were trained.
        card: makes the model card from the run, the dtype and what the check found; None: no card.
        push: a hub repository to upload the folder to.

    Raises:
        UserError: the run has no model yet, the folder is taken, or an option cannot be used.
        PrefoptError: what was written is not the run's model.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder, target = RunFolder.open(run), Path(to)
    final = str(folder.final)
    settings = folder.config.get("model", {})
    trained_dtype = str(settings.get("dtype", "float32"))
    dtype = dtype or trained_dtype
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is not one of {', '.join(DTYPES)}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is already there and not empty: choose another folder, or delete it")
    if settings.get("trust_remote_code"):
        raise UserError("the model of this run needs code of its author's own (trust_remote_code): such a model is not "
                        "exported, since the folder would not load without it")  # fmt: skip
    model, trained, tokenizer = _loaded(folder, final, trained_dtype)
    model = model.to(DTYPES[dtype])
    check = export_model(
        model,
        trained,
        tokenizer,
        target,
        source=final,
        texts=[
            tokenizer(f"{row.get('prompt', '')}{row.get('after', '')}", add_special_tokens=False)["input_ids"]
            for row in folder.lines("samples.jsonl")[:2]
        ],
        readme=None if card is None else lambda check: card(folder, dtype, check),
    )
    return Exported(
        folder=target,
        dtype=dtype,
        check=check,
        scores=is_reward_model(final),
        url=upload(target, push) if push else None,
    )


def _loaded(run: RunFolder, final: str, dtype: str) -> tuple[Any, Any, Any]:
    """The model to write, the same as it was trained, its adapters beside it, and the tokenizer."""
    if is_reward_model(final):
        model, tokenizer = open_reward_model(final, dtype)
        return model, open_reward_model(final, dtype, merge=False)[0], tokenizer
    tokenizer = load_tokenizer(ModelConfig(path=final))
    set_chat_template(tokenizer, run)
    model = load_model(ModelConfig(path=final, dtype=dtype))
    set_generation(model, tokenizer, run)
    return model, load_as_trained(ModelConfig(path=final, dtype=dtype)), tokenizer


def set_chat_template(tokenizer: Any, run: RunFolder) -> None:
    """Give the tokenizer the chat template that the run's prompts were made with, if they had one.

    Its arguments of training are its defaults.
    """
    source = trained_template(tokenizer, run.format)
    if source is not None:
        tokenizer.chat_template = source


def check_generation(model: Any, run: RunFolder) -> None:
    """Raise UserError for settings of generation that transformers loads but does not save."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError as error:
        why = " ".join(line.strip("- ") for line in str(error).splitlines()[1:2]) or first_line(error)
        file = run.final / GENERATION_CONFIG_NAME
        raise UserError(f"{file} has settings that transformers does not save: {why[:300]} Correct the file, and "
                        "export again") from error  # fmt: skip


def set_generation(model: Any, tokenizer: Any, run: RunFolder) -> None:
    """Set every token that ends an answer: the model's own, the tokenizer's, and the template's.

    Raises:
        UserError: the settings of the model cannot be saved.
    """
    ends = set(end_tokens(model, tokenizer))
    data = run.format
    shape = renderer(tokenizer, data.template, data.system, data.date, data.chat_template_kwargs)
    if isinstance(shape, Chat) and shape.end_token is not None:
        ends.add(tokenizer.convert_tokens_to_ids(shape.end_token))
    settings = model.generation_config
    settings.eos_token_id = sorted(ends) if len(ends) > 1 else next(iter(ends), None)
    if settings.pad_token_id is None:
        settings.pad_token_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=None)
        )
    check_generation(model, run)
