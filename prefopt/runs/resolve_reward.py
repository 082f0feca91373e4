"""Makes the reward that the option `reward` gives: a world's rule, a reward model, a function, or several of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from prefopt import worlds
from prefopt.config.run_config import RunConfig
from prefopt.data.data_config import DataConfig
from prefopt.data.row_facts import ARGUMENTS
from prefopt.data.world_names import WORLDS
from prefopt.errors import UserError, nearest
from prefopt.models.load import load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.models.reward_model import is_reward_model
from prefopt.plugin.outside import described, loaded, registered
from prefopt.rewards.combine import combined, digest_of
from prefopt.rewards.model import GivenPrompt, ModelReward, Writer
from prefopt.rewards.reward import FunctionReward, Reward, from_function
from prefopt.runs.resolve import resolved, resolved_data
from prefopt.runs.run_folder import model_path
from prefopt.runs.run_path import is_run
from prefopt.runs.sample_files import SampleGroup, SourcePrompt, source_prompts


def resolved_reward(config: RunConfig) -> Reward | None:
    """The configured reward.

    Raises:
        UserError: no such reward.
    """
    if config.reward is None:
        return None
    world = (str(config.data.path), config.data.world) if config.data.is_world else (worlds.REVIEWS, {})
    return named_reward(config.reward, world, partial(writer_of_run, config))


def named_reward(given: Any, world: tuple[str, Mapping[str, Any]], writer: Callable[[], Writer]) -> Reward:
    """The reward that an option gives.

    Args:
        given: a name, or a table in the grammar of `prefopt.rewards.combine`.
        world: the name and knobs of the world that `world` stands for.
        writer: says how the answers were written, for a reward model.

    Raises:
        UserError: no such reward.
    """

    def named(name: str, centre: bool) -> Reward:
        if is_run(name) or os.path.isdir(name):
            return ModelReward(path=model_path(name), writer=writer, centre=centre)
        if centre:
            raise UserError(f"reward={{centred: {name}}}: give the folder of a reward model")
        if name in WORLDS:
            path = world[0] if name == worlds.REVIEWS else name
            return worlds.WorldReward(worlds.task_of(worlds.knobs(world[1], path)))
        if ":" in name:
            return from_function(name)
        if "/" in name and is_reward_model(name):  # of the hub
            return ModelReward(path=name, writer=writer)
        outside = registered("prefopt.rewards", "reward", WORLDS)
        if name in outside:
            return FunctionReward(name, loaded(outside[name], described(outside[name], "reward")))
        raise UserError(f"reward={name}: give world, the folder of a reward model, module:function or file.py:function"
                        f"{nearest(name, [*WORLDS, *outside])}")  # fmt: skip

    return combined(given, named)


def writer_of_run(config: RunConfig) -> Writer:
    """How the answers of a run's model are written."""
    tokenizer, data = load_tokenizer(resolved(config).model), resolved_data(config.data)

    def prompts() -> dict[tuple[int, ...], GivenPrompt]:
        train, held_out = source_prompts(data, tokenizer)
        return given_by_tokens((*train, *(held_out or ())))

    return Writer(tokenizer=tokenizer, data=data, prompts=prompts)


def writer_of(groups: Sequence[SampleGroup]) -> Writer:
    """How samples of a file were written: by the model that it names, behind prompts as its data has them.

    Raises:
        UserError: the model's tokenizer is no longer there.
    """
    tokenizer = load_tokenizer(ModelConfig(path=model_path(groups[0].models[0])))
    given = {g.answers[0].prompt: GivenPrompt(text=g.given, arguments=g.arguments) for g in groups}
    arguments = dict(groups[0].sampling.get(ARGUMENTS, {}))
    data = DataConfig(path="samples", chat_template_kwargs=arguments)
    return Writer(tokenizer=tokenizer, data=data, prompts=lambda: given)


def given_by_tokens(prompts: Iterable[SourcePrompt]) -> dict[tuple[int, ...], GivenPrompt]:
    """Prompts as the data has them, by their tokens."""
    return {
        tuple(prompt.record.prompt.tolist()): GivenPrompt(text=prompt.given, arguments=prompt.arguments)
        for prompt in prompts
    }


def digest_of_reward(config: RunConfig) -> str | None:
    """A digest of what the reward is made of, besides its name: the files of functions, the weights of reward models;
    None for a world's rule.

    Raises:
        UserError: no such reward.
    """
    return digest_of(resolved_reward(config))
