"""Reward models in the engine and in training: what they score, where, and that no split changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaForSequenceClassification

from prefopt.engine.scoring import score
from prefopt.errors import UserError
from prefopt.losses.registry import load
from prefopt.models.adapters import attach
from prefopt.models.peft_config import PeftConfig
from prefopt.plugin import Data
from prefopt.train import BatchConfig
from tests.losses.names import REWARD_MODELS
from tests.train import tiny

PAD = 0


def reward_model(seed: int = 0, **settings: Any) -> LlamaForSequenceClassification:
    """The tiny model with an output layer of one number."""
    causal = tiny.model(seed, num_labels=1, pad_token_id=PAD, **settings)
    model = LlamaForSequenceClassification(causal.config).to(torch.float64)
    model.model.load_state_dict(causal.model.state_dict())
    with torch.no_grad():
        model.score.weight.normal_(0.0, 1.0)
    return model.eval()


def own_scores(model: Any, data: Any) -> np.ndarray[Any, Any]:
    """The classifier's own forward on one unpadded text after the other."""
    return scores_of_texts(model, [np.concatenate((r.prompt, c)) for r in data for c in r.completions])


def scores_of_texts(model: Any, texts: Any) -> np.ndarray[Any, Any]:
    """The same of whole texts, token ids each."""
    with torch.no_grad():
        return np.array([model(input_ids=torch.from_numpy(t.astype(np.int64))[None]).logits.item() for t in texts])


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("kind", [Data.PAIRS, Data.LISTS])
def test_scores_are_those_of_the_classifier(layout: str, kind: Data) -> None:
    model, data = reward_model(), tiny.records(kind, 12)
    found = np.concatenate([one.sum for one in score(model, data, layout=layout)])
    np.testing.assert_allclose(found, own_scores(model, data), rtol=0, atol=1e-7)
    assert [one.num_tokens.tolist() for one in score(model, data)] == [[len(c) for c in r.completions] for r in data]


def test_a_family_with_learned_positions() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=tiny.VOCAB, n_embd=16, n_layer=1, n_head=2, num_labels=1, pad_token_id=PAD)
    model, data = GPT2ForSequenceClassification(config).double().eval(), tiny.records(Data.PAIRS, 6)
    found = np.concatenate([one.sum for one in score(model, data)])
    np.testing.assert_allclose(found, own_scores(model, data), rtol=0, atol=1e-7)


def test_the_score_is_read_at_the_last_token() -> None:
    """Another last token gives another score: it is fed."""
    model, (record, *_) = reward_model(), tiny.records(Data.PAIRS, 1)
    changed = record.completions[0].copy()
    changed[-1] = 3 if changed[-1] != 3 else 4
    other = tiny.records(Data.PAIRS, 1)[0]
    object.__setattr__(other, "completions", (changed, other.completions[1]))
    before, after = score(model, [record])[0].sum, score(model, [other])[0].sum
    assert abs(before[0] - after[0]) > 1e-3
    assert before[1] == pytest.approx(after[1], abs=1e-12)


@pytest.mark.parametrize("name", REWARD_MODELS)
def test_any_split_gives_the_same_run(name: str, tmp_path: Path) -> None:
    loss = load(name)
    data = tiny.records(loss.needs.data, 32, weights=True)
    splits = [BatchConfig(records=16, layout="tree"), BatchConfig(records=16, layout="padded", max_tokens=80),
              BatchConfig(records=16, layout="tree", max_tokens=48)]  # fmt: skip
    runs = [tiny.run(loss, data, tmp_path / str(i), reward_model(), batch=batch) for i, batch in enumerate(splits)]
    for other in runs[1:]:
        assert other.losses == pytest.approx(runs[0].losses, rel=1e-6)
        assert tiny.apart(other.weights, runs[0].weights) < 1e-6
    assert "rewards/margins" in runs[0].logs[-1]
    assert not [figure for figure in runs[0].logs[-1] if figure.startswith("logps")]


def test_held_out_figures_are_scores(tmp_path: Path) -> None:
    held_out, model = tiny.records(Data.PAIRS, 9, seed=5), reward_model()
    scores = own_scores(model, held_out).reshape(-1, 2)
    trainer = tiny.make(load("bradley_terry"), tiny.records(Data.PAIRS, 16), tmp_path, model, eval=held_out)
    found = trainer.evaluate()
    assert found["eval_rewards/chosen"] == pytest.approx(scores[:, 0].mean(), abs=1e-6)
    assert found["eval_rewards/accuracies"] == pytest.approx((scores[:, 0] > scores[:, 1]).mean(), abs=1e-9)
    assert not (tmp_path / "reference").exists(), "a reward model has no reference"


def test_an_adapter_trains_the_output_layer(tmp_path: Path) -> None:
    model = attach(reward_model(), PeftConfig(method="lora", r=2), seed=0, classifier=True)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert any("score" in name for name in trained)
    assert all("lora" in name or "score" in name for name in trained)
    run = tiny.run(load("bradley_terry"), tiny.records(Data.PAIRS, 16), tmp_path, model, max_steps=10)
    assert run.losses[-1] < run.losses[0]


def test_a_loss_and_a_model_of_other_kinds_are_refused(tmp_path: Path) -> None:
    data = tiny.records(Data.PAIRS, 4)
    with pytest.raises(UserError, match="this loss trains a reward model: give a sequence classifier"):
        tiny.make(load("bradley_terry"), data, tmp_path)
    with pytest.raises(UserError, match="is a reward model, which this loss cannot train"):
        tiny.make(load("dpo"), data, tmp_path, reward_model())
    with pytest.raises(UserError, match="can only be mixed with each other"):
        load("mix", terms={"bradley_terry": 1.0, "dpo": 1.0})


def test_two_outputs_are_no_reward_model(tmp_path: Path) -> None:
    config = tiny.model(num_labels=2).config
    with pytest.raises(UserError, match="give a sequence classifier with one output"):
        tiny.make(load("bradley_terry"), tiny.records(Data.PAIRS, 4), tmp_path, LlamaForSequenceClassification(config))
