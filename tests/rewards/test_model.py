"""Reward models as rewards: what they read, in whose tokens, and which are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from prefopt.data.data_config import DataConfig
from prefopt.data.images.inputs import ImageInputs, attach
from prefopt.data.tokens import TokenRecord
from prefopt.errors import UserError
from prefopt.losses.registry import load
from prefopt.models.model_config import ModelConfig
from prefopt.models.peft_config import PeftConfig
from prefopt.models.reward_model import FACTS, load_reward_model, open_reward_model, set_padding
from prefopt.plugin import Data
from prefopt.rewards import Answer
from prefopt.rewards.model import GivenPrompt, ModelReward, Writer
from prefopt.rewards.reward import answer
from tests.data.tiny import tokenizer
from tests.train import tiny
from tests.train.test_reward_models import own_scores as scores_of_classifier
from tests.train.test_reward_models import reward_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save(folder: Path, words: Any, **settings: Any) -> Path:
    """A reward model with a fresh output layer, of a tiny language model with this tokenizer."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                             "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    config = LlamaConfig(vocab_size=len(words), eos_token_id=words.eos_token_id, bos_token_id=None, **sizes, **settings)
    causal = LlamaForCausalLM(config)
    causal.save_pretrained(folder / "causal")
    words.save_pretrained(folder / "causal")
    model = load_reward_model(ModelConfig(path=str(folder / "causal")), PeftConfig(), tokenizer=words, seed=1)
    model.save_pretrained(folder / "reward")
    words.save_pretrained(folder / "reward")
    return folder / "reward"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("plain"), tokenizer())


def writer(words: Any, prompts: Mapping[tuple[int, ...], GivenPrompt] | None = None) -> Writer:
    return Writer(tokenizer=words, data=DataConfig(path="x"), prompts=lambda: prompts or {})


def answers_of(words: Any, prompt: str, *texts: str) -> list[Answer]:
    ids = [[*words(text)["input_ids"], words.eos_token_id] for text in texts]
    return [answer(words, words(prompt)["input_ids"], text, [words.eos_token_id]) for text in ids]


def own_scores(folder: Path, texts: list[list[int]]) -> list[float]:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([text])).logits.item() for text in texts]


def test_it_reads_the_policys_tokens_with_the_end_token(plain: Path) -> None:
    words = tokenizer()
    answers = [*answers_of(words, "Is it?", "Yes.", "No, it is not."), *answers_of(words, "Who?", "Nobody.")]
    reward = ModelReward(path=str(plain), writer=lambda: writer(words))
    whole = own_scores(plain, [[*a.prompt, *a.completion] for a in answers])
    np.testing.assert_allclose(reward(answers), whole, atol=1e-6)
    without = own_scores(plain, [[*a.prompt, *a.completion[:-1]] for a in answers])
    assert np.abs(np.array(without) - whole).max() > 1e-2, "the end token is read"
    assert reward.reads_tokens
    assert reward.name.startswith("model ")


def test_the_order_and_number_of_answers_change_nothing(plain: Path) -> None:
    words = tokenizer()
    answers = [*answers_of(words, "Is it?", "Yes.", "No, it is not."), *answers_of(words, "Who?", "Nobody.", "I.")]
    reward = ModelReward(path=str(plain), writer=lambda: writer(words))
    together = reward(answers)
    np.testing.assert_allclose(reward(answers[::-1])[::-1], together, atol=1e-6)
    np.testing.assert_allclose([reward([a])[0] for a in answers], together, atol=1e-6)


@pytest.mark.parametrize(("policy", "own", "same"), [("a", "a", True), ("a", "b", False), (None, "b", True)])
def test_codes_of_images_are_read_by_the_same_processor_alone(
    plain: Path, monkeypatch: pytest.MonkeyPatch, policy: str | None, own: str, same: bool
) -> None:
    words = [tokenizer(), tokenizer()]
    for one, settings in zip(words, (policy, own), strict=True):
        if settings is not None:
            attach(one, ImageInputs(None, 3, settings))
    model, _ = open_reward_model(str(plain))
    monkeypatch.setattr("prefopt.rewards.model.open_reward_model", lambda path: (model, words[1]))
    assert ModelReward(path=str(plain), writer=lambda: writer(words[0])).reads_tokens is same


def test_another_tokenizer_reads_the_text_anew(tmp_path: Path) -> None:
    """Policy: plain text with its own vocabulary. Reward model: other words, and a chat template."""
    mine = tokenizer(vocab_size=300)
    theirs = tokenizer(CHATML, eos="<|im_end|>")
    folder = save(tmp_path, theirs)
    (found,) = answers_of(mine, "User: Is it?\n", "Yes.")
    given = {found.prompt: GivenPrompt(text=({"role": "user", "content": "Is it?"},))}
    reward = ModelReward(path=str(folder), writer=lambda: writer(mine, given))
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes."}]
    text = theirs.apply_chat_template(turns, tokenize=False).rstrip("\n")
    assert text.endswith("Yes.<|im_end|>")
    (expected,) = own_scores(folder, [theirs(text, add_special_tokens=False)["input_ids"]])
    assert reward([found])[0] == pytest.approx(expected, abs=1e-6)
    assert not reward.reads_tokens
    cut = Answer(prompt=found.prompt, completion=found.completion[:-1], prompt_text="", text="Yes.", ended=False)
    (unended,) = own_scores(folder, [theirs(text.removesuffix("<|im_end|>"), add_special_tokens=False)["input_ids"]])
    assert reward([cut])[0] == pytest.approx(unended, abs=1e-6)
    assert own_scores(folder, [[*found.prompt, *found.completion]])[0] != pytest.approx(expected, abs=1e-3), "the trap"


def test_another_template_of_the_same_words_reads_the_text_anew(tmp_path: Path) -> None:
    theirs, mine = tokenizer(CHATML, eos="<|im_end|>"), tokenizer(eos="<|im_end|>")
    reward = ModelReward(path=str(save(tmp_path, theirs)), writer=lambda: writer(mine))
    assert not reward.reads_tokens
    with pytest.raises(UserError, match="another tokenizer, chat template or image processor than the policy"):
        reward(answers_of(mine, "Is it?", "Yes."))


def test_padding_that_ends_texts_is_refused_or_replaced(tmp_path: Path) -> None:
    """transformers would take such a text to end one token early."""
    words = tokenizer()
    words.pad_token = words.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(save(tmp_path, tokenizer()))
    model.config.pad_token_id = None
    with pytest.raises(UserError, match="no padding token other than its end token"):
        set_padding(model, words)
    words.add_special_tokens({"unk_token": "<pad>"})
    set_padding(model, words)
    assert model.config.pad_token_id == words.convert_tokens_to_ids("<pad>") == words.pad_token_id


def test_what_is_no_reward_model_is_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no reward model"):
        ModelReward(path=str(plain.parent / "causal"), writer=lambda: writer(tokenizer()))
    two = tmp_path / "two"
    config = json.loads((plain / "config.json").read_text()) | {"id2label": {"0": "a", "1": "b"}}
    two.mkdir()
    for file in plain.iterdir():
        (two / file.name).write_bytes(file.read_bytes())
    (two / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has 2 outputs: a reward model has one"):
        open_reward_model(str(two))


def test_an_exact_shift_changes_no_gap(plain: Path, tmp_path: Path) -> None:
    words = tokenizer()
    shifted = tmp_path / "shifted"
    shifted.mkdir()
    for file in plain.iterdir():
        (shifted / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="the mean of its scores is not known"):
        ModelReward(path=str(shifted), writer=lambda: writer(words), centre=True)
    answers = answers_of(words, "Is it?", "Yes.", "No, it is not.")
    raw = ModelReward(path=str(shifted), writer=lambda: writer(words))(answers)
    (shifted / FACTS).write_text(json.dumps({"score": float(raw.mean())}))
    centred = ModelReward(path=str(shifted), writer=lambda: writer(words), centre=True)(answers)
    assert centred.sum() == pytest.approx(0.0, abs=1e-6)
    assert centred[0] - centred[1] == pytest.approx(raw[0] - raw[1], abs=1e-12)


def test_what_the_end_token_says_is_lost_without_it(tmp_path: Path) -> None:
    """The same text, ended or broken off by another token: read one token early, as TRL reads texts whose special
    tokens it has stripped, a reward model that knows the difference has an accuracy of one half."""
    model = reward_model()
    run = tiny.run(load("bradley_terry"), pairs(128, 0), tmp_path, model, max_steps=30, learning_rate=5e-3)
    trained = run.trainer.model.eval()

    def accuracy(cut: int) -> float:
        held_out = pairs(100, 1)
        for record in held_out:
            object.__setattr__(record, "completions", tuple(c[: len(c) - cut] for c in record.completions))
        scores = scores_of_classifier(trained, held_out).reshape(-1, 2)
        return float(np.heaviside((scores[:, 0] - scores[:, 1]).round(9), 0.5).mean())

    assert accuracy(cut=0) > 0.95
    assert accuracy(cut=1) == 0.5


def pairs(count: int, seed: int) -> list[TokenRecord]:
    """The same random text twice: the better side ends with the token 2, the worse one with 1."""
    rng = np.random.default_rng(seed)
    return [
        TokenRecord(id=str(i), kind=Data.PAIRS, prompt=rng.integers(10, tiny.VOCAB, 3).astype(np.int32),
                    completions=tuple(np.append(text, end).astype(np.int32) for end in (2, 1)))
        for i, text in enumerate(rng.integers(10, tiny.VOCAB, (count, 4)))
    ]  # fmt: skip
