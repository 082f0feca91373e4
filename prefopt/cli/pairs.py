"""`prefopt pairs FILE reward=...`: a file of preference data, made of samples and their rewards."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from prefopt.cli.arguments import Parser, number_of, split_settings
from prefopt.common.files import write_lines
from prefopt.common.json_output import print_json
from prefopt.data.world_names import REVIEWS
from prefopt.errors import UserError, nearest

EXAMPLES = """examples:
  prefopt sample MODEL data.path=FILE num_generations=4 --to samples.json
  prefopt pairs samples.json reward=rewards.py:short                  samples_pairs.jsonl, labelled by Bradley-Terry
  prefopt pairs samples.json reward=world label=argmax --to pairs.jsonl
  prefopt pairs samples.json reward=rewards.py:short --shape demonstrations     the best sample of each prompt
"""
SHAPES = ("pairs", "lists", "demonstrations")


def main(argv: list[str]) -> int:
    """Score samples, label them and write the rows.

    Raises:
        UserError: samples or a reward that cannot be used.
    """
    parser = Parser(
        prog="prefopt pairs", description="Make preference data of samples and their rewards.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "file", metavar="FILE", help="samples, as `prefopt sample num_generations=K --json` prints them"
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE",
                        help="reward=world|world/instructions|module:function|file.py:function, label=bt|soft|argmax "
                             "(bt), label_temperature=1 (in units of reward), seed=0 (of bt labels), cut_off=keep|drop "
                             "(keep: texts that were cut off are open completions), data.world.KNOB=VALUE of the "
                             "world")  # fmt: skip
    parser.add_argument("--shape", choices=SHAPES, default="pairs", help="what the rows are (default: %(default)s)")
    parser.add_argument("--to", metavar="FILE", help="the file to write (default: FILE_pairs.jsonl beside FILE)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_intermixed_args(argv)
    target = Path(args.to) if args.to else Path(args.file).with_name(f"{Path(args.file).stem}_{args.shape}.jsonl")
    figures = _write(args, target)
    if args.json:
        print_json({"file": str(target), **figures})
    else:
        print("\n".join(_lines(figures, target)))
    return 0


def _write(args: argparse.Namespace, target: Path) -> dict[str, Any]:
    """Write the rows; returns what is known of them.

    Raises:
        UserError: samples or a reward that cannot be used, or no row is left.
    """
    reward, label, temperature, seed, cut, rest = split_settings(
        args.settings, "reward", "label", "label_temperature", "seed", "cut_off"
    )
    if other := [word for word in rest if not word.startswith("data.world.")]:
        raise UserError(f"{other[0]!r} is not a setting of `prefopt pairs`: it has reward, label, label_temperature, "
                        "seed, cut_off and data.world.KNOB")  # fmt: skip
    if reward is None:
        raise UserError("which reward? give reward=world, the folder of a reward model, or reward=module:function")
    if cut not in (None, "keep", "drop"):
        raise UserError(f"cut_off={cut} is not keep or drop")
    from prefopt.common.quiet import quiet
    from prefopt.plugin import Data
    from prefopt.runs.resolve_reward import named_reward, writer_of
    from prefopt.runs.sample_files import Labelling, read_groups, reward_groups
    from prefopt.train.sources.labels import LabelRule

    quiet()
    rules = {rule.value: rule for rule in LabelRule}
    label = (label or "bt").lower()
    if label not in rules:
        raise UserError(f"label={label} is not one of {', '.join(rules)}{nearest(label, list(rules))}")
    how = Labelling(
        data=Data(args.shape), rule=rules[label], seed=number_of("seed", seed or "0", 0),
        temperature=number_of("label_temperature", temperature or "1", 1e-9, float), keep_cut=cut != "drop",
    )  # fmt: skip
    world = {
        key.removeprefix("data.world."): yaml.safe_load(value) for key, _, value in (w.partition("=") for w in rest)
    }
    groups = read_groups(Path(args.file))
    found = reward_groups(groups, named_reward(_table(reward), (REVIEWS, world), partial(writer_of, groups)), how)
    left_out = {name: count for name, count in found.left_out.items() if count}
    if not found.rows:
        raise UserError(f"no row is left ({', '.join(f'{n}: {c}' for n, c in left_out.items())}): draw longer texts "
                        "(--max-new-tokens), or more of them")  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    write_lines(target, found.rows)
    ties = sum(row.get("chosen_score", 0.0) == row.get("rejected_score", 1.0) for row in found.rows)
    opened = sum(row.get("ended", []).count(False) for row in found.rows)
    return {**found.figures(), "open": opened, "ties": ties, "left_out": left_out}


def _table(reward: str) -> Any:
    """A name as it is, and a table as YAML reads it."""
    return yaml.safe_load(reward) if reward.startswith("{") else reward


def _lines(figures: dict[str, Any], target: Path) -> list[str]:
    best = f"{figures['reward_best']:.4g} for the best of a prompt"
    lines = [f"{figures['rows']} rows in {target}", f"reward: {figures['reward']:.4g} on average, {best}"]
    if figures["open"]:
        lines.append(f"{figures['open']} completions were cut off: they are open (ended: false), so that no end token "
                     "is trained; cut_off=drop leaves them out")  # fmt: skip
    lines += [f"left out: {name}: {count}" for name, count in figures["left_out"].items()]
    if figures["ties"]:
        lines.append(f"{figures['ties']} pairs have equal rewards: data.ties=keep trains on them, by default they are "
                     "dropped")  # fmt: skip
    return lines
