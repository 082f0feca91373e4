"""`prefopt sample MODEL...`: what several models write behind the same prompts, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from prefopt.errors import UserError

EXAMPLES = """examples:
  prefopt sample runs/mine                                  a run and the model it was tuned from, on held-out prompts
  prefopt sample runs/a runs/b runs/c --prompt "Name a metal."
  prefopt sample MODEL_FOLDER OTHER data.path=FILE --count 5 --temperature 0.8
"""


def main(argv: list[str]) -> int:
    """Write texts and print them side by side, or as JSON lines.

    Raises:
        UserError: models or prompts that cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="prefopt sample", description="What several models write behind the same prompts, side by side.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", nargs="+", metavar="MODEL | KEY=VALUE",
                        help="run folders, model or adapter folders, hub ids, package:NAME or world; and settings such "
                             "as data.path=FILE")  # fmt: skip
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT",
                        help="instead of prompts of the data; may be repeated")  # fmt: skip
    parser.add_argument("--count", type=int, default=3, metavar="N", help="prompts of the data (%(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="of a text (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a prompt")
    args = parser.parse_intermixed_args(argv)
    models = [w for w in args.what if "=" not in w]
    if not models:
        raise UserError("which models? give at least one folder, such as runs/mine")
    with redirect_stdout(sys.stderr):  # some libraries greet, and stdout may be asked to be JSON
        rows = texts(models, [w for w in args.what if "=" in w], args)
    for row in rows:
        if args.json:
            print(json.dumps(row))
    if not args.json:
        show(rows)
    return 0


def texts(models: Sequence[str], settings: Sequence[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """For each prompt `prompt` and `texts`, a list of `model` and `text` in the order of the models.

    One run alone is shown beside the model that it was tuned from. Models are loaded one after another.

    Raises:
        UserError: models or prompts that cannot be used.
    """
    from prefopt.common.quiet import quiet
    from prefopt.data.config import DataConfig
    from prefopt.data.tokenize import Encoder
    from prefopt.evaluate.texts import Sampling, write_texts
    from prefopt.runs.read import RunFolder, is_run, open_model

    quiet(keep_data_bars=True)
    named = list(models)
    if len(models) == 1 and is_run(models[0]):
        named = [RunFolder.open(models[0]).start, models[0]]
    sampling = Sampling(max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=args.seed)
    rows: list[dict[str, Any]] = []
    for name in named:
        model, tokenizer = open_model(name)
        if args.prompt:
            encoder = Encoder(tokenizer, DataConfig(path="prompts"))
            prompts, shown = [encoder.prompt(text) for text in args.prompt], list(args.prompt)
        else:
            prompts = _data_prompts(models, settings, tokenizer, args.count)
            shown = [tokenizer.decode(prompt) for prompt in prompts]
        rows = rows or [{"prompt": text, "texts": []} for text in shown]
        written = write_texts(model, tokenizer, prompts, sampling)
        for row, text in zip(rows, written, strict=True):
            row["texts"].append({"model": name, "text": tokenizer.decode(text, skip_special_tokens=True)})
    return rows


def _data_prompts(models: Sequence[str], settings: Sequence[str], tokenizer: Any, count: int) -> list[list[int]]:
    """Prompts of the data that is named, else of the first run's held-out records."""
    from prefopt.cli.loading import records_of
    from prefopt.evaluate.texts import held_out_prompts
    from prefopt.runs.read import is_run

    run = next((name for name in models if is_run(name)), models[0])
    _, records, _ = records_of(run, settings, tokenizer)
    return held_out_prompts(records, count)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the texts under each other; what the first model does not say is underlined in the others'."""
    from rich.console import Console
    from rich.text import Text

    from prefopt.common.redact import printable
    from prefopt.report.words import marked

    console = Console()
    for row in rows:
        console.print(Text(printable(row["prompt"]).strip(), style="bold"))
        first = printable(row["texts"][0]["text"])
        for i, one in enumerate(row["texts"]):
            said = printable(one["text"])
            text = Text(f"{one['model']}: ", style="cyan")
            pieces = marked(first, said)[1] if i else [(said, False)]
            for piece, new in pieces:
                text.append(piece, style="underline" if new else "not bold default")
            console.print(text)
        console.print()
