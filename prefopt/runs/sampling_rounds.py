"""Draws the samples that a run with `source=samples` learns from, before it, and writes them as its data.

The samples are those of the model that the run starts from, so a row of such runs, each from the model of the one
before, is iterative training: of DPO with `loss=dpo`, of best-of-n distillation with `loss=sft`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefopt.common.digest import of_file
from prefopt.common.files import write_json, write_lines
from prefopt.common.processes import from_first_process
from prefopt.config.run_config import RunConfig
from prefopt.data.data_config import DataConfig
from prefopt.engine.cpu import give_back
from prefopt.errors import UserError
from prefopt.evaluate.texts import Sampling
from prefopt.models.load import load_policy, load_tokenizer
from prefopt.plugin import Data
from prefopt.runs.resolve import resolve_path, resolved, resolved_data
from prefopt.runs.resolve_reward import digest_of_reward, resolved_reward
from prefopt.runs.sample_files import Labelling, Rewarded, SampleGroup, draw, reward_groups, source_prompts
from prefopt.train.sources.labels import LabelRule

DRAWN, ROWS, HELD_OUT = "drawn.jsonl", "records.jsonl", "records_held_out.jsonl"
FACTS = "drawn.json"  # written last: with it the files before it are whole
Log = Callable[[str], None]


def rounds_as_stages(config: RunConfig) -> RunConfig:
    """The last of `config.rounds` rounds, with those before it as stages; each has a seed of its own."""
    if config.rounds == 1:
        return config
    each = [dataclasses.replace(config, rounds=1, stages={}, seed=config.seed + i) for i in range(config.rounds)]
    before = {f"round{i + 1}": one for i, one in enumerate(each[:-1])}
    return dataclasses.replace(each[-1], stages={**config.stages, **before})


def with_samples(config: RunConfig, log: Log) -> RunConfig:
    """A run on the samples that the model it starts from writes, as a run on their files in its folder.

    Samples that are there already, made of the same model, prompts, reward and options, are used again.

    Raises:
        UserError: the folder has samples that were made otherwise, or none can be made.
    """
    if config.source != "samples":
        return config
    # Before what the first process makes alone: a world's models are trained by all.
    loadable, _ = resolved(config), resolved_data(config.data)
    folder, made = config.output_dir, from_first_process(lambda: _make(config, log))
    data = dataclasses.replace(
        config.data, path=str(folder / ROWS), eval_path=str(folder / HELD_OUT) if made["held_out"] else None,
        schema="auto", fields={}, verdicts={}, mixture=[], world={}, split=None, subset=None, eval_split=None,
        eval_records=0, eval_fraction=0.0, max_records=None, pairs_from=None,
        ties="split" if config.rollout.label is LabelRule.ARGMAX else "keep",
    )  # fmt: skip
    # Names of a world's models would be those of the default world on this data.
    model = loadable.model if config.data.is_world else config.model
    return dataclasses.replace(config, source="offline", reward=None, data=data, model=model)


def _make(config: RunConfig, log: Log) -> dict[str, Any]:
    """Make the files of samples and rows, or find them; returns what `drawn.json` says of them."""
    made_of, facts = _made_of(config), config.output_dir / FACTS
    if facts.is_file():
        found: dict[str, Any] = json.loads(facts.read_text(encoding="utf-8"))
        _check_same(found["made_of"], made_of, config.output_dir)
        log(f"samples: found in {config.output_dir / DRAWN}")
        return found
    train, held_out = _draw(config)
    write_lines(config.output_dir / DRAWN, [*_rows(train), *(_rows(held_out) if held_out else [])])
    write_lines(config.output_dir / ROWS, train[1].rows)
    if held_out is not None:
        write_lines(config.output_dir / HELD_OUT, held_out[1].rows)
    found = {
        "made_of": made_of,
        "figures": train[1].figures(),
        "left_out": {name: count for name, count in train[1].left_out.items() if count},
        "held_out": held_out is not None,
    }
    write_json(facts, found)
    log(_line(found, config))
    return found


Drawn = tuple[list[SampleGroup], Rewarded]


def _draw(config: RunConfig) -> tuple[Drawn, Drawn | None]:
    """Samples of the prompts to learn from, and of those that are held out, each with their rewards.

    Raises:
        UserError: no row is left.
    """
    loadable, reward, rollout = resolved(config), resolved_reward(config), config.rollout
    assert reward is not None, "checked with the configuration"
    tokenizer = load_tokenizer(loadable.model)
    model = load_policy(loadable.model, config.peft, seed=config.seed)
    sampling = Sampling(max_new_tokens=rollout.max_new_tokens, temperature=rollout.temperature, seed=config.seed)
    data = Data.PAIRS if config.loss.needs.data is Data.UNPAIRED else config.loss.needs.data
    how = Labelling(data=data, rule=rollout.label, temperature=rollout.label_temperature, seed=config.seed)
    drawn: list[Drawn | None] = []
    for prompts in source_prompts(resolved_data(config.data), tokenizer):
        if prompts is None:
            drawn.append(None)
            continue
        groups = draw(config.model.path, model, tokenizer, prompts, rollout.num_generations, sampling,
                      config.data.chat_template_kwargs)  # fmt: skip
        drawn.append((groups, reward_groups(groups, reward, how)))
    del model
    give_back()
    train, held_out = drawn
    assert train is not None
    if not train[1].rows:
        left_out = ", ".join(f"{name}: {count}" for name, count in train[1].left_out.items() if count)
        raise UserError(f"no record is left of the samples ({left_out}): raise rollout.max_new_tokens or "
                        "rollout.num_generations")  # fmt: skip
    return train, held_out if held_out is not None and held_out[1].rows else None


def _rows(drawn: Drawn) -> list[dict[str, Any]]:
    """The samples of each prompt with their rewards."""
    return [
        {**group.plain(), "rewards": scores.tolist()} for group, scores in zip(drawn[0], drawn[1].rewards, strict=True)
    ]


def _made_of(config: RunConfig) -> dict[str, Any]:
    """Everything that the samples and their labels depend on."""
    data = dataclasses.asdict(config.data)
    files = [config.data.path, config.data.eval_path, *(source.path for source in config.data.sources())]
    about = {
        "model.path": state_of_model(config.model.path, config.data),
        "data": {name: value for name, value in data.items() if name not in ("num_proc", "cache_dir")},
        "the content of data.path": [content_of(Path(str(file))) for file in files if file],
        "reward": config.reward,
        "the code of reward": digest_of_reward(config),
        "seed": config.seed,
        "the shape of the loss's data": config.loss.needs.data.value,
        **{f"rollout.{name}": value for name, value in dataclasses.asdict(config.rollout).items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(about, default=str))
    return plain


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError where samples were made of something else."""
    other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if other:
        raise UserError(f"{folder} has samples that were made with another {', '.join(other)}: give what they were "
                        "made with, or another output_dir")  # fmt: skip


def _line(found: Mapping[str, Any], config: RunConfig) -> str:
    figures = found["figures"]
    left_out = "".join(f"; left out: {count} {name}" for name, count in found["left_out"].items())
    return (
        f"samples: {config.rollout.num_generations} of each prompt by {config.model.path}, reward "
        f"{figures['reward']:.4g} (best of a prompt {figures['reward_best']:.4g}), {figures['rows']:.0f} records"
        f"{left_out}"
    )


def state_of_model(path: str, data: DataConfig) -> Any:
    """The state of a model's files; of a hub id its name. The names of a world's models are of the world of `data`."""
    folder = Path(resolve_path(path, data))
    if not folder.is_dir():
        return path
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(folder.iterdir()) if f.is_file()]


def content_of(path: Path) -> Any:
    """The digests of data files, wherever they lie; of a hub data set its name."""
    if path.is_dir():
        return [content_of(file) for file in sorted(path.rglob("*")) if file.is_file()]
    if not path.is_file():
        return str(path)
    return of_file(path)
