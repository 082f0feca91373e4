"""Builds an instruction world on disk: samples of its model in shards, and preference pairs of them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from prefopt.common.cache import cache_dir, cached_folder
from prefopt.common.digest import FileState, of_json
from prefopt.common.files import write_json, write_lines
from prefopt.data.data_config import DataConfig
from prefopt.data.reader import read
from prefopt.data.record import Record
from prefopt.data.tokenize import Encoder
from prefopt.engine.generation import end_tokens, generate
from prefopt.errors import UserError
from prefopt.models.identity import digest_of_weights
from prefopt.models.load import load_model, load_tokenizer, resolve
from prefopt.models.model_config import ModelConfig
from prefopt.rewards.reward import Answer, answer
from prefopt.worlds import instructions, rater
from prefopt.worlds.build import WorldFiles
from prefopt.worlds.instructions import InstructionWorld, answer_reward, is_valid
from prefopt.worlds.rater import ScoredText, Split, pairs, singles
from prefopt.worlds.task import Sampled

SHARED, FILE = "PREFOPT_SHARED_DATA", "llms-from-scratch/instruction-data.json"
SHARD = 16  # prompts whose samples are drawn and stored at once
SAMPLING = 1  # raise it when the same settings draw other texts
SHARES: Mapping[Split, tuple[float, float]] = {"train": (0, 0.72), "validation": (0.72, 0.82), "test": (0.82, 1)}
TEXTS = "texts.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstructionTask:
    """Prompts, texts and rewards of the instruction world, as measurement and training on samples read them."""

    world: InstructionWorld

    @cached_property
    def sampling(self) -> Sampled:
        """How texts are sampled."""
        return Sampled(max_new_tokens=self.world.max_new_tokens, ends=_ends(self.world.model), batch_size=64,
                       max_tokens=1024)  # fmt: skip

    def size(self, split: Split) -> int:
        """The prompts of a split."""
        return len(split_prompts(self.world, split))

    def prompts(self, n: int, seed: int, split: Split) -> list[list[int]]:
        """`n` different prompts of a split in tokens, in an order drawn from `seed`; the splits share none.

        Raises:
            UserError: the split has fewer.
        """
        found = split_prompts(self.world, split)
        if n > len(found):
            raise UserError(f"the instruction world has {len(found)} {split} prompts, {n} were asked for")
        tokens = _prompt_tokens(self.world)
        return [list(tokens[found[i]]) for i in np.random.default_rng(seed).permutation(len(found))[:n]]

    def answers(self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> list[Answer]:
        """Texts behind prompts, decoded."""
        tokenizer = _tokenizer(self.world.model)
        return [answer(tokenizer, p, t, self.sampling.ends) for p, t in zip(prompts, texts, strict=True)]

    def text(self, answer: Answer) -> str:
        """The words of an answer, without special tokens."""
        return _written(self.world.model, answer.completion)

    def reward(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """(n,) exact rewards.

        Raises:
            UserError: a prompt is not one of the world's in its model's tokens.
        """
        given = {tokens: prompt for prompt, tokens in _prompt_tokens(self.world).items()}
        if foreign := [a.prompt_text for a in answers if a.prompt not in given]:
            raise UserError(f"the instruction world scores answers to its own instructions, and {foreign[0][-200:]!r} "
                            "is none of them: use data and model world/instructions with their own template, or "
                            "give reward=module:function")  # fmt: skip
        return np.array([answer_reward(given[a.prompt], self.text(a), ended=a.ended) for a in answers])

    def valid(self, answers: Sequence[Answer]) -> NDArray[np.bool_]:
        """(n,) whether each answer is finished and has no markup."""
        return np.array([is_valid(self.text(a), ended=a.ended) for a in answers], dtype=np.bool_)


def files(world: InstructionWorld, root: Path | None = None) -> WorldFiles:
    """The files of an instruction world, from the cache or made now: 20 minutes of one core for the default.

    A build that was stopped continues with the next shard of samples. Worlds share samples that differ only in labels.

    Args:
        world: the knobs.
        root: where to build; None for the `worlds` folder of prefopt's cache.

    Raises:
        UserError: the instructions or the model are not there, or give fewer pairs than asked for.
    """
    root = cache_dir() / "worlds" if root is None else root
    content = asdict(world) | {"model": "", "prompts": ""}
    code = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in (instructions, rater)]
    folder = root / f"instruction-pairs-{of_json([content, samples_key(world, 'train'), code], size=8)}"
    cached_folder(folder, lambda made: _make_pairs(world, root, made))
    model = Path(resolve(world.model))
    return WorldFiles(
        base=model, model=model, seconds={}, **{split: folder / f"{split}.jsonl" for split in SHARES}
    )  # fmt: skip


def records(world: InstructionWorld) -> Sequence[Record]:
    """The records of the file of instructions.

    Raises:
        UserError: there is no such file.
    """
    file = world.prompts or os.path.join(os.environ.get(SHARED, ""), FILE)
    if (not world.prompts and SHARED not in os.environ) or not os.path.isfile(file):
        raise UserError(f"the instruction world needs a file of instructions, and {file} is not there: set {SHARED} to "
                        f"the folder that holds {FILE}, or data.world.prompts to a file with the columns "
                        "instruction and input; both are in rasbt/LLMs-from-scratch (ch07), Apache-2.0")  # fmt: skip
    return _records(FileState.of(Path(file)))


def text_of(record: Record) -> str:
    """The instruction of a record."""
    said = record.prompt
    return said if isinstance(said, str) else str(said[-1]["content"])


def split_prompts(world: InstructionWorld, split: Split) -> tuple[str, ...]:
    """The prompts of a split, each once, in an order that never changes; the splits share none."""
    every = _prompts(world)
    start, stop = (round(share * len(every)) for share in SHARES[split])
    order = np.random.default_rng(0).permutation(len(every))
    return tuple(every[i] for i in order[start:stop])


def samples_key(world: InstructionWorld, split: Split) -> str:
    """The digest of all that the samples of a split depend on."""
    return of_json([
        SAMPLING, SHARD, split, split_prompts(world, split), world.draw, world.samples_per_prompt, world.max_new_tokens,
        digest_of_weights(resolve(world.model)), torch.__version__, transformers.__version__,
    ], size=8)  # fmt: skip


def samples(world: InstructionWorld, split: Split, root: Path) -> dict[str, list[list[int]]]:
    """For each prompt of a split its samples in tokens; shards that are there already are not drawn again."""
    prompts = split_prompts(world, split)
    folder = root / f"instruction-samples-{samples_key(world, split)}"
    shards = [prompts[i : i + SHARD] for i in range(0, len(prompts), SHARD)]
    drawn: dict[str, list[list[int]]] = {}
    for number, shard in enumerate(shards):

        def make(made: Path, number: int = number, shard: Sequence[str] = shard) -> None:
            _log.info("instruction world, %s: samples %d of %d", split, number + 1, len(shards))
            write_json(made / TEXTS, _draw(world, split, number, shard))

        file = cached_folder(folder / f"{number:03d}", make) / TEXTS
        texts, each = json.loads(file.read_text(encoding="utf-8")), world.samples_per_prompt
        drawn |= {prompt: texts[i * each : (i + 1) * each] for i, prompt in enumerate(shard)}
    return drawn


def _draw(world: InstructionWorld, split: Split, number: int, prompts: Sequence[str]) -> list[list[int]]:
    task, tokens = InstructionTask(world), _prompt_tokens(world)
    return generate(
        _model(world.model),
        [tokens[prompt] for prompt in prompts for _ in range(world.samples_per_prompt)],
        max_new_tokens=world.max_new_tokens,
        eos_token_id=task.sampling.ends,
        temperature=1.0,
        seed=int(world.generator(split, f"texts {number}").integers(2**31)),
        batch_size=task.sampling.batch_size,
    )


def _make_pairs(world: InstructionWorld, root: Path, folder: Path) -> None:
    for split in SHARES:
        drawn = samples(world, split, root)
        scored = {prompt: [_scored(world, prompt, text) for text in texts] for prompt, texts in drawn.items()}
        rows = pairs(world, scored, world.generator(split, "labels"))
        if split == "train":
            if len(rows) < world.pairs:
                raise UserError(f"the instructions give {len(rows)} usable training pairs, and data.world.pairs="
                                f"{world.pairs} are asked for: set it to {len(rows)} or less")  # fmt: skip
            rows = rows[: world.pairs]
            if world.desirable_dropped > 0:
                rows = singles(rows, world.desirable_dropped, world.generator(split, "dropped"))
        write_lines(folder / f"{split}.jsonl", rows)


def _scored(world: InstructionWorld, prompt: str, tokens: Sequence[int]) -> ScoredText:
    """A sample; one without a word, or with a special token inside, is not usable."""
    ended = tokens[-1] in _ends(world.model)
    text = _written(world.model, tokens)
    said = tokens[:-1] if ended else tokens
    inside = set(said).isdisjoint(_tokenizer(world.model).all_special_ids)
    return ScoredText(
        text=text, tokens=len(tokens), reward=answer_reward(prompt, text, ended=ended), ended=ended,
        usable=bool(text.strip()) and inside,
    )  # fmt: skip


def _written(model: str, tokens: Sequence[int]) -> str:
    """The text of a completion, without special tokens."""
    text: str = _tokenizer(model).decode(list(tokens), skip_special_tokens=True)
    return text


@lru_cache(maxsize=4)
def _records(file: FileState) -> Sequence[Record]:
    return list(read(DataConfig(path=file.path)).records)


@lru_cache(maxsize=4)
def _prompts(world: InstructionWorld) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text_of(record) for record in records(world)))


@lru_cache(maxsize=4)
def _prompt_tokens(world: InstructionWorld) -> dict[str, tuple[int, ...]]:
    """The tokens of every prompt under the model's own template."""
    encoder = Encoder(_tokenizer(world.model), DataConfig(path=FILE))
    return {prompt: tuple(encoder.prompt(prompt)) for prompt in _prompts(world)}


@cache
def _tokenizer(model: str) -> Any:
    return load_tokenizer(ModelConfig(path=model))


@lru_cache(maxsize=1)
def _model(model: str) -> Any:
    return load_model(ModelConfig(path=model))


@cache
def _ends(model: str) -> tuple[int, ...]:
    """The tokens that end a text."""
    return tuple(end_tokens(_model(model), _tokenizer(model)))
