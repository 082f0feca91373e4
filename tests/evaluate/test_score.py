"""The functions of `import prefopt`, as the README shows them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import prefopt
from prefopt.data import DataConfig, prepare
from prefopt.errors import UserError
from prefopt.train import BatchConfig
from tests.data.tiny import tokenizer


@pytest.fixture(scope="module")
def tiny() -> tuple[LlamaForCausalLM, object]:
    made = tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(made), num_key_value_heads=2, **sizes)), made


def test_score_is_the_sum_of_a_plain_forward(tiny: tuple[LlamaForCausalLM, object]) -> None:
    model, made = tiny
    texts = [
        ("The capital of France is", " Paris."),
        ("The capital of France is", " not Rome, but Paris."),
        ("2+2=", "4"),
    ]
    scores = prefopt.score(model, made, texts)
    for (prompt, completion), score in zip(texts, scores, strict=True):
        head = made(prompt)["input_ids"]  # type: ignore[operator]
        ids = [*made(prompt + completion)["input_ids"], made.eos_token_id]  # type: ignore[operator,attr-defined]
        shared = next((i for i, (a, b) in enumerate(zip(head, ids, strict=False)) if a != b), len(head))
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(logp[t - 1, ids[t]].item() for t in range(shared, len(ids)))
        assert score.num_tokens == len(ids) - shared
        assert score.sum == pytest.approx(expected, abs=1e-4)
        assert score.mean == pytest.approx(expected / score.num_tokens, abs=1e-5)


def test_score_names_a_text_that_it_cannot_score(tiny: tuple[LlamaForCausalLM, object]) -> None:
    with pytest.raises(UserError, match=r"texts\[1\]"):
        prefopt.score(*tiny, [("a", "b"), ("a", "")])


def test_a_loss_by_hand_in_three_lines() -> None:
    loss = prefopt.load("dpo", beta=0.5)
    values = prefopt.evaluate(loss, chosen=[-10.0], rejected=[-12.0], ref_chosen=[-11.0], ref_rejected=[-11.0])
    # margin = 0.5 * ((-10 + 11) - (-12 + 11)) = 1
    assert values == [pytest.approx(math.log(1 + math.exp(-1)), abs=1e-12)]


def test_load_refuses_by_name() -> None:
    with pytest.raises(UserError, match="did you mean 'simpo'"):
        prefopt.load("simpoo")
    with pytest.raises(UserError, match="did you mean 'beta'"):
        prefopt.load("simpo", bta=1.0)


def test_train(tiny: tuple[LlamaForCausalLM, object], tmp_path: Path) -> None:
    model, made = tiny
    file = tmp_path / "pairs.csv"
    file.write_text("prompt,chosen,rejected\n" + "".join(f"Is {i} odd?,Yes {i},No way {i}\n" for i in range(24)))
    data = prepare(DataConfig(path=str(file), eval_records=8), made, prefopt.load("dpo").needs.data)
    result = prefopt.train(
        model, prefopt.load("dpo"), data.train, eval=data.eval, output_dir=tmp_path / "run",
        batch=BatchConfig(records=8), max_steps=6, learning_rate=1e-2, warmup_steps=0,
    )  # fmt: skip
    assert result.before["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert result.after["rewards/margins"] > 0


def test_the_readme_runs(
    tiny: tuple[LlamaForCausalLM, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Python, as it stands there."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (code,) = (block.split("```")[0] for block in readme.split("```python\n")[1:])
    folder, pairs_file = tmp_path / "model", tmp_path / "pairs.jsonl"
    tiny[0].save_pretrained(folder)
    tiny[1].save_pretrained(folder)  # type: ignore[attr-defined]
    rows = (f'{{"prompt": "Is {i} odd?", "chosen": "Yes {i}", "rejected": "No way {i}"}}\n' for i in range(48))
    pairs_file.write_text("".join(rows))
    scope = {"folder": str(folder), "pairs_file": str(pairs_file), "out": str(tmp_path / "out")}
    exec(compile(code, "README.md", "exec"), scope)
    assert "rewards/accuracies" in scope["result"].after  # type: ignore[attr-defined]
