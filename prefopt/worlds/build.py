"""Builds a review world on disk: tokenizer, base model, SFT model, and preference pairs sampled from it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefopt.common.cache import cache_dir, cached_folder, fill, making
from prefopt.common.digest import of_json
from prefopt.common.processes import from_first_process, is_first_process
from prefopt.data.tokens import TokenRecord
from prefopt.engine.generation import generate
from prefopt.errors import PrefoptError, UserError
from prefopt.losses.sft import SFT
from prefopt.plugin import Data
from prefopt.rewards.reward import Answer
from prefopt.train import BatchConfig, train
from prefopt.worlds import review
from prefopt.worlds.review import MAX_COMPLETION_TOKENS, MAX_PAIRS, WORDS, ReviewWorld, Split, knobs

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(len(SPECIALS))
VOCABULARY = (*SPECIALS, *WORDS)
MAX_NEW_TOKENS = MAX_COMPLETION_TOKENS + 2  # a longer text is no review, so truncation loses nothing
HELD_OUT_PAIRS = 256
SECONDS = "seconds.json"

BATCH = 128  # demonstrations a step
BASE_STEPS, BASE_LEARNING_RATE = 100, 3e-3
SFT_STEPS, SFT_LEARNING_RATE = 250, 3e-3
BASE_NOISE = 0.15  # share of random words in the base model's corpus

_WORD_IDS = {word: i for i, word in enumerate(VOCABULARY)}


@dataclass(frozen=True, kw_only=True)
class WorldFiles:
    """The paths of a world. `base` and `model` are folders that transformers loads, with tokenizer."""

    base: Path  # trained on corrupted reviews: knows the words, hardly the grammar
    model: Path  # SFT on well-formed reviews: start and reference of every method
    train: Path  # .jsonl of prompt, chosen, rejected, score_chosen, score_rejected (exact rewards); or of single texts
    validation: Path  # 256 pairs on prompts that `train` does not have
    test: Path  # the same, on prompts that neither has
    seconds: Mapping[str, float]  # of training, for `base` and `sft`


def resolve(world: ReviewWorld | Mapping[str, Any] | None = None) -> WorldFiles:
    """The files of the review world, built on first use: what `model.path=world` and `data.path=world` stand for.

    Args:
        world: the world, or the knobs that differ from the default's, such as {"label_flips": 0.2}.
    """
    return build(world if isinstance(world, ReviewWorld) else knobs(world or {}))


def build(world: ReviewWorld, root: Path | None = None, *, callbacks: Sequence[Any] = ()) -> WorldFiles:
    """The files of a world, from the cache or made now, in about half a minute.

    Args:
        world: the knobs. Worlds share models of one `seed`, and texts that differ only in labels.
        root: where to build; None for the `worlds` folder of prefopt's cache.
        callbacks: transformers callbacks for the training of the two models.
    """
    root = cache_dir() / "worlds" if root is None else root
    models_folder = _models(world, _models_folder(world, root), callbacks)
    pairs_folder = root / f"review-pairs-{_key(**dataclasses.asdict(world))}"
    cached_folder(pairs_folder, lambda folder: _make_pairs(world, root, folder))
    return WorldFiles(
        base=models_folder / "base",
        model=models_folder / "sft",
        train=pairs_folder / "train.jsonl",
        validation=pairs_folder / "validation.jsonl",
        test=pairs_folder / "test.jsonl",
        seconds=json.loads((models_folder / SECONDS).read_text(encoding="utf-8")),
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, which puts `<bos>` in front."""
    words = Tokenizer(models.WordLevel(_WORD_IDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def new_model(seed: int) -> LlamaForCausalLM:
    """A two-layer Llama with 105 thousand random weights."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.1,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def prompt_ids(prompt: str) -> list[int]:
    """The tokens of a prompt, with `<bos>`."""
    return [BOS, *(_WORD_IDS.get(word, UNK) for word in prompt.split())]


def words(ids: Sequence[int]) -> str:
    """The text of completion tokens, without `<eos>`."""
    ids = ids[:-1] if len(ids) > 0 and ids[-1] == EOS else ids
    return " ".join(VOCABULARY[i] for i in ids)


@dataclass(frozen=True)
class WorldReward:
    """The exact reward of a world's texts, for training on samples."""

    world: ReviewWorld
    name: str = "world"

    def __call__(self, answers: Sequence[Answer], /) -> NDArray[np.float64]:
        """(n,) rewards.

        Raises:
            UserError: the texts are not in the world's tokens.
        """
        if any(token >= len(VOCABULARY) for answer in answers for token in (*answer.prompt, *answer.completion)):
            raise UserError("reward=world scores texts of the built-in world's model: give reward=module:function for "
                            "another one")  # fmt: skip
        return self.world.reward([f"{words(answer.prompt[1:])} {words(answer.completion)}" for answer in answers])


def _key(**content: Any) -> str:
    """The digest of `content`, the code of this module and the grammar, and the versions of libraries."""
    source = "".join(Path(file).read_text(encoding="utf-8") for file in (__file__, review.__file__))
    versions = [torch.__version__, transformers.__version__]
    return of_json([content, source, versions], size=8)


def _models_folder(world: ReviewWorld, root: Path) -> Path:
    return root / f"review-models-{_key(seed=world.seed)}"


def _models(world: ReviewWorld, folder: Path, callbacks: Sequence[Any]) -> Path:
    """The folder of the models. All processes of a run train them together, but only the first one writes weights."""
    if not from_first_process(folder.is_dir):
        with making(folder) if is_first_process() else nullcontext():
            if from_first_process(folder.is_dir):  # another run was making it
                return folder
            if is_first_process():
                fill(folder, lambda made: _make_models(world, made, callbacks))
            else:
                with TemporaryDirectory() as unused:
                    _make_models(world, Path(unused), callbacks)
        from_first_process(folder.is_dir)  # wait until it is written
    return folder


def _make_models(world: ReviewWorld, folder: Path, callbacks: Sequence[Any]) -> None:
    model = new_model(world.seed)
    records = [
        _demonstration(number, prompt, completion)
        for number, (prompt, completion) in enumerate(
            world.demonstrations(BATCH * (BASE_STEPS + SFT_STEPS), seed=world.seed)
        )
    ]
    rng = np.random.default_rng(world.seed)
    cut = BATCH * BASE_STEPS
    stages = (
        ("base", [_corrupted(record, rng) for record in records[:cut]], BASE_LEARNING_RATE),
        ("sft", records[cut:], SFT_LEARNING_RATE),
    )
    seconds = {}
    for name, corpus, learning_rate in stages:
        result = train(
            model,
            SFT(),
            corpus,
            output_dir=folder / "work",
            batch=BatchConfig(records=BATCH),
            seed=world.seed,
            callbacks=callbacks,
            learning_rate=learning_rate,
            max_steps=len(corpus) // BATCH,
            logging_strategy="no",
        )
        seconds[name] = round(result.seconds, 2)
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    shutil.rmtree(folder / "work", ignore_errors=True)
    (folder / SECONDS).write_text(json.dumps(seconds), encoding="utf-8")


def _demonstration(number: int, prompt: str, completion: str) -> TokenRecord:
    return TokenRecord(
        id=f"demonstration {number}",
        kind=Data.DEMONSTRATIONS,
        prompt=np.array(prompt_ids(prompt), dtype=np.int32),
        completions=(np.array([*prompt_ids(completion)[1:], EOS], dtype=np.int32),),
    )


def _corrupted(record: TokenRecord, rng: np.random.Generator) -> TokenRecord:
    """The demonstration with a share of its words replaced at random, but not its end."""
    ids = record.completions[0].copy()
    hit = rng.random(len(ids)) < BASE_NOISE
    hit[-1] = False
    ids[hit] = rng.integers(len(SPECIALS), len(VOCABULARY), int(hit.sum()))
    return dataclasses.replace(record, completions=(ids,))


def _make_pairs(world: ReviewWorld, root: Path, folder: Path) -> None:
    for split, count in _counts(world).items():
        rows = _label(world, _samples(world, split, count, root), _rng(world, split, "labels"))[:count]
        if len(rows) < count:
            raise PrefoptError(f"the samples gave only {len(rows)} usable {split} pairs of {count}: try another `draw`")
        if split == "train" and world.desirable_dropped > 0:
            rows = _singles(rows, world.desirable_dropped, _rng(world, split, "dropped"))
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def _counts(world: ReviewWorld) -> dict[Split, int]:
    return {"train": world.pairs, "validation": HELD_OUT_PAIRS, "test": HELD_OUT_PAIRS}


def _rng(world: ReviewWorld, split: Split, use: str) -> np.random.Generator:
    """A generator for each use, so that worlds with other labels have the same texts."""
    return np.random.default_rng([world.draw, *f"{split} {use}".encode()])


def _samples(world: ReviewWorld, split: Split, count: int, root: Path) -> dict[str, list[list[int]]]:
    """For each prompt the samples of its two pairs; worlds that differ only in labels share them."""
    wanted = min(-(-count * 8 // 15) + 8, MAX_PAIRS * 8 // 15)  # a reserve for unusable pairs
    prompts = world.prompts(wanted, world.draw, split)
    each = 2 * (1 + world.best_of)
    name = _key(seed=world.seed, draw=world.draw, split=split, prompts=len(prompts), each=each)

    def make(folder: Path) -> None:
        repeated = [prompt_ids(prompt) for prompt in prompts for _ in range(each)]
        texts = generate(
            LlamaForCausalLM.from_pretrained(_models_folder(world, root) / "sft"),
            repeated,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=EOS,
            temperature=1.0,
            seed=int(_rng(world, split, "texts").integers(2**31)),
            batch_size=1024,
        )
        (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")

    folder = cached_folder(root / f"review-samples-{name}", make)
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    return {prompt: texts[i * each : (i + 1) * each] for i, prompt in enumerate(prompts)}


def _label(
    world: ReviewWorld, samples: Mapping[str, Sequence[list[int]]], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Two pairs per prompt, each of a sample and the best of `best_of` others, labelled by the world.

    Leaves out pairs of equal reward, whose label would be random, and texts that do not survive a round trip through a
    file: empty or truncated ones, and ones with a special word inside.
    """
    rows = []
    for prompt, texts in samples.items():
        for half in (texts[: len(texts) // 2], texts[len(texts) // 2 :]):
            rewards = world.reward([f"{prompt} {words(text)}" for text in half])
            best = 1 + int(rewards[1:].argmax())
            pair, reward = (half[0], half[best]), (float(rewards[0]), float(rewards[best]))
            if reward[0] == reward[1] or not all(map(_usable, pair)):
                continue
            gap = np.array([reward[0] - reward[1]])
            first = rng.random() < world.preference(gap, len(pair[0]) - len(pair[1]))[0]
            chosen, rejected = (0, 1) if first else (1, 0)
            rows.append(
                {
                    "prompt": prompt,
                    "chosen": " " + words(pair[chosen]),
                    "rejected": " " + words(pair[rejected]),
                    "score_chosen": reward[chosen],
                    "score_rejected": reward[rejected],
                }
            )
    return rows


def _singles(rows: Sequence[Mapping[str, Any]], dropped: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Every rejected text and the chosen ones that are kept, with labels; a larger share drops the same and more."""
    kept = rng.random(len(rows)) >= dropped
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row, keep in zip(rows, kept, strict=True)
        for side in ("chosen", "rejected")
        if keep or side == "rejected"
    ]


def _usable(text: Sequence[int]) -> bool:
    return len(text) > 1 and text[-1] == EOS and min(text[:-1]) >= len(SPECIALS)
