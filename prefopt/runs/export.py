"""From a run's folder to a folder that is shipped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.data.data_config import DataConfig
from prefopt.data.templates import Chat, renderer, template_source
from prefopt.errors import PrefoptError, UserError, first_line
from prefopt.evaluate.texts import end_tokens
from prefopt.models.export_check import Check, check
from prefopt.models.load import DTYPES, ModelConfig, load_as_trained, load_model, load_tokenizer
from prefopt.report.model_card import model_card
from prefopt.runs.read import RunFolder
from prefopt.train.checkpoints import writing


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export` made."""

    folder: Path
    dtype: str
    check: Check
    url: str | None  # of the hub, where it was pushed


def export(
    run: str | Path, to: str | Path, *, dtype: str | None = None, licence: str | None = None, push: str | None = None
) -> Exported:
    """Write the tuned model of a run to a folder of its own: weights with adapters merged in safetensors, tokenizer
    with the chat template of training, generation config, model card.

    The folder appears whole, after a fresh interpreter without prefopt has loaded it and found the run's log-probs, or
    not at all.

    Args:
        run: a finished run's folder.
        to: the folder to make; it must be empty or absent.
        dtype: of the weights; None: as they were trained.
        licence: an SPDX id, for the card; None leaves a gap there that says so.
        push: a hub repository to upload the folder to.

    Raises:
        UserError: the run has no model yet, the folder is taken, or an option cannot be used.
        PrefoptError: what was written is not the run's model.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder, target = RunFolder.open(run), Path(to)
    final = str(folder.final)
    trained = str(folder.config.get("model", {}).get("dtype", "float32"))
    kind = dtype or trained
    if kind not in DTYPES:
        raise UserError(f"--dtype {kind} is not one of {', '.join(DTYPES)}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is already there and not empty: choose another folder, or delete it")
    if folder.config.get("model", {}).get("trust_remote_code"):
        raise UserError("the model of this run needs code of its author's own (trust_remote_code): such a model is not "
                        "exported, since the folder would not load without it")  # fmt: skip
    tokenizer = load_tokenizer(ModelConfig(path=final))
    set_chat_template(tokenizer, folder)
    model = load_model(ModelConfig(path=final, dtype=trained)).to(DTYPES[kind])
    set_generation(model, tokenizer, folder)
    own = load_as_trained(ModelConfig(path=final, dtype=trained))
    texts = [tokenizer(f"{r.get('prompt', '')}{r.get('after', '')}", add_special_tokens=False)["input_ids"]
             for r in folder.lines("samples.jsonl")[:2]]  # fmt: skip
    with writing(target, writes=True) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        found = check(made, own, tokenizer, DTYPES[kind], texts)
        (made / "README.md").write_text(model_card(folder, dtype=kind, check=found, licence=licence), encoding="utf-8")
    url = upload(target, push) if push else None
    return Exported(folder=target, dtype=kind, check=found, url=url)


def set_chat_template(tokenizer: Any, run: RunFolder) -> None:
    """Give the tokenizer the template that the run's prompts were made with; plain text leaves it as it is."""
    name = str(run.config.get("data", {}).get("template", "auto"))
    source = template_source(name, tokenizer)
    if source is not None:
        tokenizer.chat_template = source


def set_generation(model: Any, tokenizer: Any, run: RunFolder) -> None:
    """Name every token that ends an answer: the model's own, the tokenizer's, and the template's."""
    ends = set(end_tokens(model, tokenizer))
    data = run.config.get("data", {})
    shape = renderer(tokenizer, str(data.get("template", "auto")), str(data.get("system", DataConfig.system)))
    if isinstance(shape, Chat):
        shape.render(({"role": "user", "content": "?"},), ("!",))
        if shape.end_token is not None:
            ends.add(tokenizer.convert_tokens_to_ids(shape.end_token))
    settings = model.generation_config
    settings.eos_token_id = sorted(ends) if len(ends) > 1 else next(iter(ends), None)
    if settings.pad_token_id is None:
        settings.pad_token_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=None)
        )


def upload(folder: Path, repository: str) -> str:
    """Put a folder on the hub, in a private repository if it is a new one; gives the address.

    Raises:
        PrefoptError: the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Export of prefopt")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise PrefoptError(
            f"could not upload to {repository}: {first_line(error)}; {folder} is complete: `hf auth login`, then "
            "`hf upload`"
        ) from error
    return f"https://huggingface.co/{repository}"
