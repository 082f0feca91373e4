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
from prefopt.common.files import write_lines
from prefopt.common.processes import from_first_process, is_first_process
from prefopt.data.tokens import TokenRecord
from prefopt.engine.generation import generate
from prefopt.errors import PrefoptError, UserError
from prefopt.losses.sft import SFT
from prefopt.plugin import Data
from prefopt.rewards.reward import Answer
from prefopt.train import BatchConfig, train
from prefopt.worlds import rater, review
from prefopt.worlds.rater import ScoredText, Split, pairs, singles
from prefopt.worlds.review import MAX_COMPLETION_TOKENS, MAX_PAIRS, WIDTH, WORDS, ReviewWorld
from prefopt.worlds.task import Sampled

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(len(SPECIALS))
VOCABULARY = (*SPECIALS, *WORDS)
MAX_NEW_TOKENS = MAX_COMPLETION_TOKENS + 2  # a longer text is no review, so truncation loses nothing
HELD_OUT_PAIRS = 256
SECONDS = "seconds.json"
SAMPLING = Sampled(max_new_tokens=MAX_NEW_TOKENS, ends=(EOS,), batch_size=1024, max_tokens=4096)

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


def build(world: ReviewWorld, root: Path | None = None, *, callbacks: Sequence[Any] = ()) -> WorldFiles:
    """The files of a world, from the cache or made now, in about half a minute.

    Args:
        world: the knobs. Worlds share models of one `seed`, and texts that differ only in labels.
        root: where to build; None for the `worlds` folder of prefopt's cache.
        callbacks: transformers callbacks for the training of the two models.
    """
    root = cache_dir() / "worlds" if root is None else root
    models_folder = _models(world, root, callbacks)
    # Before the pairs, which one process makes: models are trained by all.
    writer = _models(dataclasses.replace(world, width=WIDTH), root, ()) / "sft"
    pairs_folder = root / f"review-pairs-{_key(**dataclasses.asdict(world))}"
    cached_folder(pairs_folder, lambda folder: _make_pairs(world, root, writer, folder))
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


def new_model(seed: int, width: int = WIDTH) -> LlamaForCausalLM:
    """A two-layer Llama with random weights, 105 thousand at the default width."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=11 * width // 4,
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
class ReviewTask:
    """Prompts, texts and rewards of the review world, as measurement and training on samples read them."""

    world: ReviewWorld
    sampling: Sampled = SAMPLING

    def size(self, split: Split) -> int:
        """The prompts of a split."""
        return review.split_size(split)

    def prompts(self, n: int, seed: int, split: Split) -> list[list[int]]:
        """`n` different prompts of a split in tokens."""
        return [prompt_ids(prompt) for prompt in self.world.prompts(n, seed, split)]

    def answers(self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> list[Answer]:
        """Texts behind prompts, decoded."""
        return [
            Answer(prompt=tuple(p), completion=tuple(t), prompt_text=words(p[1:]), text=words(t), ended=t[-1] == EOS)
            for p, t in zip(prompts, texts, strict=True)
        ]

    def text(self, answer: Answer) -> str:
        """The words of an answer, without end token."""
        return words(answer.completion)

    def reward(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """(n,) exact rewards.

        Raises:
            UserError: the texts are not in the world's tokens.
        """
        return self.world.reward(self._texts(answers))

    def valid(self, answers: Sequence[Answer]) -> NDArray[np.bool_]:
        """(n,) whether each text parses."""
        return self.world.valid(self._texts(answers))

    def _texts(self, answers: Sequence[Answer]) -> list[str]:
        if any(token >= len(VOCABULARY) for answer in answers for token in (*answer.prompt, *answer.completion)):
            raise UserError("reward=world scores texts of the built-in world's model: give reward=module:function for "
                            "another one")  # fmt: skip
        return [f"{words(answer.prompt[1:])} {words(answer.completion)}" for answer in answers]


def _key(**content: Any) -> str:
    """The digest of `content`, the code of this module and the grammar, and the versions of libraries."""
    source = "".join(Path(file).read_text(encoding="utf-8") for file in (__file__, review.__file__, rater.__file__))
    versions = [torch.__version__, transformers.__version__]
    return of_json([content, source, versions], size=8)


def _models(world: ReviewWorld, root: Path, callbacks: Sequence[Any]) -> Path:
    """The folder of the models. All processes of a run train them together, but only the first one writes weights."""
    folder = root / f"review-models-{_key(seed=world.seed, width=world.width)}"
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
    model = new_model(world.seed, world.width)
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


def _make_pairs(world: ReviewWorld, root: Path, writer: Path, folder: Path) -> None:
    for split, count in _counts(world).items():
        rows = _labelled(world, _samples(world, split, count, root, writer), split)[:count]
        if len(rows) < count:
            raise PrefoptError(f"the samples gave only {len(rows)} usable {split} pairs of {count}: try another `draw`")
        if split == "train" and world.desirable_dropped > 0:
            rows = singles(rows, world.desirable_dropped, world.generator(split, "dropped"))
        write_lines(folder / f"{split}.jsonl", rows)


def _counts(world: ReviewWorld) -> dict[Split, int]:
    return {"train": world.pairs, "validation": HELD_OUT_PAIRS, "test": HELD_OUT_PAIRS}


def _samples(world: ReviewWorld, split: Split, count: int, root: Path, writer: Path) -> dict[str, list[list[int]]]:
    """For each prompt the `writer`'s samples of its two pairs; worlds that differ only in labels share them."""
    wanted = min(-(-count * 8 // 15) + 8, MAX_PAIRS * 8 // 15)  # a reserve for unusable pairs
    prompts = world.prompts(wanted, world.draw, split)
    each = world.samples_per_prompt
    name = _key(seed=world.seed, draw=world.draw, split=split, prompts=len(prompts), each=each)

    def make(folder: Path) -> None:
        repeated = [prompt_ids(prompt) for prompt in prompts for _ in range(each)]
        texts = generate(
            LlamaForCausalLM.from_pretrained(writer),
            repeated,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=EOS,
            temperature=1.0,
            seed=int(world.generator(split, "texts").integers(2**31)),
            batch_size=1024,
        )
        (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")

    folder = cached_folder(root / f"review-samples-{name}", make)
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    return {prompt: texts[i * each : (i + 1) * each] for i, prompt in enumerate(prompts)}


def _labelled(world: ReviewWorld, samples: Mapping[str, Sequence[list[int]]], split: Split) -> list[dict[str, Any]]:
    """Pairs of texts that survive a round trip through a file: none that is empty, cut off or has a special word."""
    scored = {}
    for prompt, texts in samples.items():
        rewards = world.reward([f"{prompt} {words(text)}" for text in texts])
        scored[prompt] = [
            ScoredText(text=" " + words(text), tokens=len(text), reward=float(reward), usable=_usable(text))
            for text, reward in zip(texts, rewards, strict=True)
        ]
    return pairs(world, scored, world.generator(split, "labels"))


def _usable(text: Sequence[int]) -> bool:
    return len(text) > 1 and text[-1] == EOS and min(text[:-1]) >= len(SPECIALS)
