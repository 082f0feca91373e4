"""`prefopt sample MODEL...`: texts of several models on the same prompts, side by side, or K samples of each prompt."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from prefopt.cli.arguments import (
    SETTING,
    Parser,
    add_sampling,
    at_least,
    number_of,
    sampling_options,
    split_settings,
)
from prefopt.common.escaping_console import Console
from prefopt.common.files import write_json
from prefopt.common.json_output import print_json
from prefopt.common.redact import printable
from prefopt.errors import UserError
from prefopt.report.readable import readable
from prefopt.report.text_diff import marked
from prefopt.runs.run_path import check_model, is_run

EXAMPLES = """examples:
  prefopt sample runs/mine                                  a run and the model it was tuned from, on held-out prompts
  prefopt sample runs/a runs/b runs/c --prompt "Name a metal."
  prefopt sample MODEL_FOLDER OTHER data.path=FILE --count 5 --temperature 0.8
  prefopt sample MODEL data.path=FILE num_generations=4 --to samples.json     4 samples of every prompt, with token ids,
                                          log-probs and origin: `prefopt pairs samples.json` makes pairs of them
"""


def main(argv: list[str]) -> int:
    """Sample texts and print them side by side, or as JSON.

    Raises:
        UserError: models or prompts that cannot be used.
    """
    parser = Parser(
        prog="prefopt sample", description="Sample texts of several models on the same prompts, side by side.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", nargs="+", metavar="MODEL | KEY=VALUE",
                        help="run folders, model or adapter folders, hub ids, package:NAME or world; and settings such "
                             "as data.path=FILE and num_generations=4")  # fmt: skip
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT",
                        help="a prompt, instead of those of the data; may be repeated")  # fmt: skip
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="an image that each --prompt is about, in its place <image> or before it; may be repeated",
    )
    parser.add_argument("--count", type=at_least(1), metavar="N",
                        help="how many prompts of the data to take (default: 3; with num_generations all)")  # fmt: skip
    add_sampling(parser, max_new_tokens=128, temperature=None)
    parser.add_argument("--json", action="store_true", help="print one JSON list, an object for each prompt")
    parser.add_argument("--to", metavar="FILE", help="write that list to a file instead")
    args = parser.parse_intermixed_args(argv)
    _check_models([word for word in args.what if not SETTING.fullmatch(word)])
    if args.image and not args.prompt:
        raise UserError("--image is for prompts that --prompt gives; the data's own prompts have theirs")
    settings = [word for word in args.what if SETTING.fullmatch(word)]
    several, settings = split_settings(settings, "num_generations")
    args.temperature = (0.0 if several is None else 1.0) if args.temperature is None else args.temperature
    if several is None:
        rows = _texts(args, settings)
    else:
        rows = _samples(args, settings, number_of("num_generations", several))
    if args.to:
        write_json(Path(args.to), rows)
        print(f"texts behind {len(rows)} prompts in {args.to}")
    elif args.json:
        print_json(rows, indent=1)
    else:
        _show(rows)
    return 0


def _check_models(names: Sequence[str]) -> None:
    if not names:
        raise UserError("which models? give at least one folder, such as runs/mine")
    if not any(map(is_run, names)):  # a run knows its start, from wherever it was started
        for name in names:
            check_model(name)


def _samples(args: argparse.Namespace, settings: Sequence[str], count: int) -> list[dict[str, Any]]:
    """`count` samples of each prompt by each model, as `prefopt.runs.sample_files.SampleGroup.plain` has them.

    Raises:
        UserError: models or prompts that cannot be used.
    """
    from prefopt.cli.loading import asked, data_of, format_of, opened
    from prefopt.common.quiet import quiet
    from prefopt.evaluate.texts import Sampling
    from prefopt.runs.resolve import resolved_data
    from prefopt.runs.sample_files import draw, given_prompts, joined, source_prompts

    quiet(keep_data_bars=True)
    models = [word for word in args.what if not SETTING.fullmatch(word)]
    owner = next((name for name in models if is_run(name)), models[0])
    sampling = Sampling(**sampling_options(args))
    named = (format_of if args.prompt else data_of)(owner, settings)
    data = resolved_data(named)
    drawn = []
    for name in models:
        model, tokenizer = opened(name, owner, named)
        if args.prompt:
            prompts = given_prompts(asked(args.prompt, args.image), tokenizer, data)
        else:
            train, held_out = source_prompts(data, tokenizer)
            prompts = (train if held_out is None else held_out)[: args.count]
        drawn.append(draw(name, model, tokenizer, prompts, count, sampling, data.chat_template_kwargs))
    return [group.plain() for group in joined(drawn)]


def _texts(args: argparse.Namespace, settings: Sequence[str]) -> list[dict[str, Any]]:
    """For each prompt its text as `prompt`, and as `texts` a list of `model` and `text`.

    A run alone is shown beside the model it was tuned from. Models are loaded one after another.

    Raises:
        UserError: models or prompts that cannot be used.
    """
    from prefopt.cli.loading import asked, data_of, format_of, opened
    from prefopt.common.quiet import quiet
    from prefopt.data.data_config import FORMAT
    from prefopt.data.prepare import prepare
    from prefopt.data.tokenize import Encoder
    from prefopt.evaluate.texts import Sampling, held_out_prompts, prompt_texts, write_texts
    from prefopt.runs.resolve import resolved_data
    from prefopt.runs.run_folder import RunFolder

    quiet(keep_data_bars=True)
    models = [word for word in args.what if not SETTING.fullmatch(word)]
    owner = next((name for name in models if is_run(name)), models[0])  # whose data it is
    if len(models) == 1 and is_run(models[0]):
        models = [RunFolder.open(models[0]).start, models[0]]
    sampling = Sampling(**sampling_options(args))
    named = None if args.prompt else data_of(owner, settings)
    data = None if named is None else resolved_data(named)
    rows: list[dict[str, Any]] = []
    for name in models:
        model, tokenizer = opened(name, owner, named)
        own = format_of(name if is_run(name) else owner, settings)  # a run's model reads prompts as it learnt them
        if data is None:
            encoder = Encoder(tokenizer, own)
            prompts, shown = [encoder.prompt(text) for text in asked(args.prompt, args.image)], list(args.prompt)
        else:
            as_learnt = {option: getattr(own, option) for option in FORMAT}
            prepared = prepare(dataclasses.replace(data, **as_learnt), tokenizer, None)
            prompts = held_out_prompts(prepared.train if prepared.eval is None else prepared.eval, args.count or 3)
            shown = prompt_texts(tokenizer, prompts)
        rows = rows or [{"prompt": text, "texts": []} for text in shown]
        written = write_texts(model, tokenizer, prompts, sampling)
        for row, text in zip(rows, written, strict=True):
            row["texts"].append({"model": name, "text": tokenizer.decode(text, skip_special_tokens=True)})
    return rows


def _show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the texts below each other; words that the first model does not write are underlined in the others'."""
    console = Console()
    for row in rows:
        console.print(Text(printable(readable(row["prompt"])).strip(), style="bold"))
        for model, pieces in _marked(row["texts"]):
            text = Text(f"{printable(model)}: ", style="cyan")
            for piece, new in pieces:
                text.append(printable(piece), style="underline" if new else "not bold default")
            console.print(text)
        console.print()


def _marked(texts: Sequence[dict[str, str]]) -> Iterator[tuple[str, Sequence[tuple[str, bool]]]]:
    """Each model with its text in pieces, and whether a piece is new against the first model's text."""
    first = printable(texts[0]["text"])
    for i, one in enumerate(texts):
        text = printable(one["text"])
        yield one["model"], marked(first, text)[1] if i else [(text, False)]
