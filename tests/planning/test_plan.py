"""`prefopt plan`: what it says of a run is what the run does, and its arithmetic is that of the formulas."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.cli import main
from prefopt.losses import MENU
from prefopt.losses.registry import load
from prefopt.planning import advice
from prefopt.planning.devices import DEVICES, UTILISATION, device
from prefopt.planning.memory import count_weights, optimizer_bytes
from prefopt.planning.probe import Line
from prefopt.planning.shape import SHAPES, Shape, shape
from prefopt.planning.sharded import NETWORK_GBPS, AverageRecord, Workload, sharded_step


@pytest.fixture
def plan(
    model_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:  # fmt: skip
    """`prefopt plan --json` on the small model and data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFOPT_MALLOC", "0")

    def call(*more: str) -> dict[str, Any]:
        given = [f"model.path={model_folder}", f"data.path={pairs_file}", "data.eval_records=8", "batch.records=8",
                 "evaluation.texts=1", "evaluation.kl_prompts=2", "evaluation.max_new_tokens=4"]  # fmt: skip
        assert main(["plan", "--json", *given, *more]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return call


def test_says_what_others_build_on(plan: Any, tmp_path: Path) -> None:
    found = plan("trainer.num_train_epochs=2")
    assert {"steps", "tokens_per_step", "memory_gib", "seconds", "warnings"} <= found.keys()
    assert found["records"] == 32
    assert found["steps"] == 8  # 32 records, 8 a step, two epochs
    parts = ["weights", "gradients", "optimizer", "activations", "head", "reference", "libraries"]
    assert list(found["memory_gib"]) == [*parts, "total"]
    assert found["memory_gib"]["total"] == pytest.approx(sum(found["memory_gib"][p] for p in parts), abs=1e-3)
    assert found["seconds"] > 0
    assert found["config"]["loss"] == {"name": "dpo", "beta": 0.1}
    assert "32 pairs to train on, fewer than 1,000" in found["warnings"][0]
    assert not list(tmp_path.iterdir()), "a plan leaves nothing behind"


def test_tokens_are_those_that_the_run_feeds(plan: Any, model_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    from prefopt.config.compose import compose
    from prefopt.models.load import load_model, load_tokenizer
    from prefopt.runs.resolve import prepared_data
    from prefopt.train import build

    config = compose(
        [f"model.path={model_folder}", f"data.path={pairs_file}", "data.eval_records=8", "batch.records=8"]
    )
    prepared = prepared_data(config, load_tokenizer(config.model))
    trainer = build(load_model(config.model), config.loss, prepared.train, output_dir=tmp_path / "run",
                    batch=config.batch, store=tmp_path / "store")  # fmt: skip
    fed = [batch.tokens_fed for batch in trainer.get_train_dataloader()]
    assert plan()["tokens_per_step"] == round(sum(fed) / len(fed))


def test_another_device(plan: Any) -> None:
    found = plan("--device", "a100-80")
    assert found["device"] == "NVIDIA A100 SXM 80 GB"
    assert found["seconds_measured"] is False
    assert found["memory_free_gib"] == pytest.approx(80e9 / 2**30, abs=0.01)
    assert found["micro_batches_per_step"] == 1  # rows of a GPU's length, not of this machine's


def test_refusals_are_one_line(plan: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "loss=dppo"]) == 2
    assert main(["plan", "--device", "h10"]) == 2
    assert main(["plan", "--devices", "8"]) == 2
    assert main(["plan", "--model-shape", "llama3-70"]) == 2
    assert main(["plan", "--model-shape", "llama3-8b", "--lengths", "x"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5
    assert "did you mean 'h100'" in errors[1]


def test_weights_of_a_shape_are_those_of_the_model() -> None:
    config = LlamaConfig(vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)  # fmt: skip
    model = LlamaForCausalLM(config)
    assert Shape.of(config).weights == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama3-8b", 8.03), ("llama3-70b", 70.55), ("llama3-405b", 405.85), ("smollm2-135m", 0.1345)],
)
def test_shapes_have_the_published_number_of_weights(name: str, billions: float) -> None:
    assert SHAPES[name].weights / 1e9 == pytest.approx(billions, rel=1e-3)


def test_flops_by_hand() -> None:
    """Width 2, one layer, one head of 2, inner 3, 5 words; 7 tokens, 22.5 pairs, 5 scored.

    Weights of the layer: 4 * 4 + 3 * 2 * 3 = 34. 2 * 34 * 7 = 476; 4 * 2 * 22.5 = 180; 2 * 2 * 5 * 5 = 100.
    """
    tiny = Shape(hidden=2, layers=1, heads=1, kv_heads=1, head_dim=2, inner=3, vocab=5)
    record = AverageRecord(prompt=4, completions=(3, 2))
    assert (record.fed, record.pairs, record.scored) == (7, 22.5, 5)
    assert tiny.forward_flops(record.fed, record.pairs, record.scored) == 476 + 180 + 100


def test_seventy_billion_by_hand() -> None:
    """64 devices, 128 records of 766 tokens: two a device, in one forward of 1,532 tokens."""
    p, h100 = SHAPES["llama3-70b"].weights, device("h100")
    work = Workload(records_per_step=128, max_tokens=4096, record=AverageRecord(prompt=256, completions=(256, 256)))
    found = sharded_step(SHAPES["llama3-70b"], work, device=h100, devices=64)
    layer = 2 * 8192 * 128 * (64 + 8) + 3 * 8192 * 28_672
    kept = 8 * 8192 + 2 * 8192 + 2 * 1024 + 4 * 28_672
    assert found.micro_batches == 1
    assert found.memory.weights == 4 * p // 64 + 4 * layer
    assert found.memory.gradients == 4 * p // 64
    assert found.memory.optimizer == 8 * p // 64
    assert found.memory.activations == 2 * 8192 * 80 * 1532 + 2 * kept * 1532
    assert found.traffic_bytes == pytest.approx({"weights": 4 * p * 63 / 64, "gradients": 2 * p * 63 / 64})
    assert found.traffic_seconds == pytest.approx(6 * p * 63 / 64 / (NETWORK_GBPS * 1e9))
    flops = SHAPES["llama3-70b"].forward_flops(766, 256**2 / 2 + 2 * (256 * 255 + 255**2 / 2), 512)
    assert found.compute_seconds == pytest.approx(4 * 128 * flops / (64 * 989e12 * UTILISATION))
    assert found.step_seconds == max(found.compute_seconds, found.traffic_seconds)


def test_more_forwards_keep_whole_gradients() -> None:
    record = AverageRecord(prompt=500, completions=(250, 250))
    one, four = (
        sharded_step(
            SHAPES["llama3-8b"],
            Workload(records_per_step=records, max_tokens=1024, record=record),
            device=device("h100"),
            devices=8,
        )
        for records in (8, 32)
    )
    assert (one.micro_batches, four.micro_batches) == (1, 4)
    assert four.memory.gradients == 8 * one.memory.gradients == 4 * SHAPES["llama3-8b"].weights
    assert four.traffic_bytes["weights"] == 4 * one.traffic_bytes["weights"]


def test_the_command_line_of_a_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = LlamaConfig(vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4)  # fmt: skip
    config.save_pretrained(tmp_path)
    assert shape(str(tmp_path)) == Shape.of(config)
    argv = ["plan", "--model-shape", str(tmp_path), "--device", "l4", "--records", "1000", "batch.records=10", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 100
    assert found["measured"] is False
    assert {"memory_gib", "traffic_gib", "seconds_per_step", "warnings"} <= found.keys()


def test_devices_say_their_sources() -> None:
    assert all(d.source and d.memory_gb > 0 and d.peak_tflops > 0 and d.link_gbps > 0 for d in DEVICES.values())


# --- warnings


def test_every_useful_range_of_the_menu_is_understood() -> None:
    """A field whose comment says `useful range` is read, unless the range has no upper end."""
    from prefopt.losses import load_class
    from prefopt.plugin import comments

    unread = {
        (name, field)
        for name in MENU
        for field, about in comments(load_class(name)).items()
        if "useful range" in about and advice.useful_range(about) is None
    }
    assert unread == {("mix", "terms"), ("mallows_dpo", "vocab_size"), ("rainbow_po", "vocab_size")}


def test_defaults_are_within_their_useful_ranges() -> None:
    from prefopt.losses import load_class
    from prefopt.testing import example

    assert {name: list(advice.outside_range(example(load_class(name)))) for name in MENU} == {name: [] for name in MENU}


def test_a_beta_outside_its_useful_range() -> None:
    assert list(advice.outside_range(load("simpo", beta=2.5))) == []
    (said,) = advice.outside_range(load("simpo", beta=0.1))
    assert "loss.beta=0.1 is outside its useful range, 2 to 10" in said


@pytest.mark.parametrize(
    ("rate", "adapters", "weights", "warned"),
    [
        (5e-7, False, 7e9, False),
        (1e-4, False, 7e9, True),  # a hundred times the literature's
        (5e-5, True, 7e9, False),  # ten times more with adapters
        (1e-9, False, 7e9, True),
        (1e-5, False, 1.35e8, False),  # small models
    ],
)
def test_learning_rates(rate: float, adapters: bool, weights: float, warned: bool) -> None:
    said = list(advice.learning_rate(load("dpo"), "dpo", rate, adapters=adapters, weights=int(weights)))
    assert bool(said) == warned
    assert list(advice.learning_rate(load("wpo"), "wpo", rate, adapters=adapters, weights=int(weights))) == []


def test_a_base_model_is_noticed(model_folder: Path, pairs_file: Path) -> None:
    from prefopt.data import DataConfig, prepare
    from prefopt.models.load import ModelConfig, load_model, load_tokenizer
    from prefopt.plugin import Data

    config = ModelConfig(path=str(model_folder))
    tokenizer, model = load_tokenizer(config), load_model(config)
    records = prepare(DataConfig(path=str(pairs_file)), tokenizer, Data.PAIRS).train
    tokenizer.chat_template = None
    (said,) = advice.not_tuned(model, tokenizer, records, Data.PAIRS)
    assert "base model without SFT" in said
    tokenizer.chat_template = "{{ messages }}"
    (said,) = advice.not_tuned(model, tokenizer, records, Data.PAIRS)  # random weights end no turn
    assert "ends an answer of this data with a probability of" in said
    assert list(advice.not_tuned(model, tokenizer, records, Data.DEMONSTRATIONS)) == []  # this is SFT


def test_nothing_to_train() -> None:
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    (said,) = advice.adapters(model)
    assert "no weight is trainable" in said


def test_memory_that_will_not_do() -> None:
    assert list(advice.memory(5.0, 10.0, "this machine")) == []
    assert "too close" in next(advice.memory(9.5, 10.0, "this machine"))
    assert "lower batch.max_tokens" in next(advice.memory(11.0, 10.0, "this machine"))


# --- parts


def test_optimizer_states() -> None:
    assert optimizer_bytes("adamw_torch_fused", 100) == 200
    assert optimizer_bytes("adamw_8bit", 100) == 50
    assert optimizer_bytes("sgd", 100) == 0


def test_tied_weights_count_once() -> None:
    config = LlamaConfig(vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                         num_attention_heads=4, tie_word_embeddings=True)  # fmt: skip
    model = LlamaForCausalLM(config)
    held, trainable, count = count_weights(model)
    assert count == Shape.of(config).weights
    assert trainable == 4 * count
    assert held >= trainable  # and the buffers


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks for it
def test_with_an_adapter_only_its_weights_are_trained() -> None:
    pytest.importorskip("peft", reason="the peft extra is not installed")
    from prefopt.models.adapters import PeftConfig, attach

    config = LlamaConfig(vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                         num_attention_heads=4)  # fmt: skip
    model = attach(LlamaForCausalLM(config), PeftConfig(method="lora", r=2), seed=0)
    held, trainable, _ = count_weights(model)
    # r (in + out) of seven matrices: query, key, value, output 32 + 32; gate, up, down 32 + 48
    assert trainable == 4 * 2 * (4 * 64 + 3 * 80)
    assert held > 4 * Shape.of(config).weights


def test_a_line_through_two_measurements() -> None:
    assert Line.through([1.0, 3.0], [3.0, 7.0]) == Line(fixed=1.0, slope=2.0)
    assert Line.through([2.0], [6.0])(4.0) == 12.0
    assert Line.through([1.0, 2.0], [5.0, 4.0])(2.0) >= 4.0  # noise: through the origin, never below


def test_kept_bytes_grow_with_the_tokens_and_are_those_of_the_formula() -> None:
    """A layer more keeps what the formula says of one, and a copy of keys, values and output behind a long prompt:

    (2 K + A) / 704 = 128 / 704 = 0.18 here. Rows, rotary tables and the head are the same for both models.
    """
    from prefopt.engine.cpu import available
    from prefopt.engine.policy import Policy
    from prefopt.engine.scoring import Branch, MicroBatch
    from prefopt.planning.probe import kept_bytes

    ids = torch.arange(400, dtype=torch.int32).numpy() % 64
    batch = MicroBatch.of([Branch(ids[:-8], ids[-8:])], "tree")
    kept, shapes = [], []
    for layers in (1, 3):
        config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=layers,
                             num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
        model = Policy(LlamaForCausalLM(config), "tree")
        kept.append(kept_bytes(model, lambda b, m=model: b.forward(m).sum.sum(), batch))  # type: ignore[misc]
        shapes.append(Shape.of(config))
    layer = (kept[1] - kept[0]) / 2 / batch.row.tokens_fed / 4  # elements of a token
    assert layer == pytest.approx(shapes[0].kept_elements(fused=available()), rel=0.25)


def test_a_shape_with_experts_is_refused() -> None:
    from prefopt.errors import UserError

    with pytest.raises(UserError, match="experts"):
        Shape.of(SimpleNamespace(num_experts=8))
    assert replace(SHAPES["llama3-8b"], tied=True).weights < SHAPES["llama3-8b"].weights
