"""Tiny tokenizers for tests: byte-level BPE, so that any text has tokens and comes back from them."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "The quick brown fox jumps over the lazy dog.",
    "User: What is the capital of France?\n\nAssistant: Paris is the capital of France.",
    "Human: Please answer the question.\n\nAssistant: I would rather not say, but here is the answer: 42.",
    "Write a sentence with the given word and explain what it means, step by step.",
]
SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]


def tokenizer(
    chat_template: str | None = None,
    *,
    special: tuple[str, ...] = (),
    bos: str | None = None,
    eos: str | None = "</s>",
    add_bos: bool = False,
    vocab_size: int = 400,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with these special tokens; `add_bos` makes it put `bos` before every text."""
    tokens = list(dict.fromkeys([*SPECIAL, *special, *([bos] if bos else []), *([eos] if eos else [])]))
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(LINES * 4, trainer)
    if add_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
        )
    others = [token for token in tokens if token not in (bos, eos, "<pad>")]
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token="<pad>", additional_special_tokens=others
    )
    made.chat_template = chat_template
    return made
