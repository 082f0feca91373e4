"""Prompts with images: the engine's numbers are those of transformers' processor and plain forward, in every layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from prefopt.data.data_config import DataConfig
from prefopt.data.images.inputs import attach, inputs_of
from prefopt.data.prepare import prepare
from prefopt.data.token_table import TokenTable
from prefopt.engine import image_arguments, image_decoders, layout
from prefopt.engine.attention import _causal
from prefopt.engine.flex import mask_of
from prefopt.engine.forward import unwrap
from prefopt.engine.gates import choose_layout
from prefopt.engine.generation import generate
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import Branch, MicroBatch, score
from prefopt.errors import UserError
from prefopt.models.load import load_model, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.plugin import Data
from tests.models import pictures

NATS = 1e-4  # of a sequence: float32 knows the log-probs of this scale to about 1e-5 each


@dataclass
class Family:
    """A tiny model of a family, pairs about images for it, and their folder."""

    path: str
    model: Any
    tokenizer: Any
    pairs: TokenTable
    folder: Path

    def plain(self, i: int, answer: str) -> float:
        """The log-prob of an answer by transformers' processor and model alone."""
        processor = inputs_of(self.model).processor  # type: ignore[union-attr]
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour?"}]}]
        asked = processor.apply_chat_template(turns, add_generation_prompt=True)
        image = Image.open(self.folder / f"{i}.png").convert("RGB")
        end = self.tokenizer.decode([int(self.pairs[i].completions[0][-1])])
        made = processor(images=image, text=f"{asked}{answer}{end}", return_tensors="pt")
        start = len(self.pairs[i].prompt)  # what both answers share: a space may merge with what follows
        with torch.no_grad():
            logp = self.model(**made).logits[0].double().log_softmax(-1)
        ids = made["input_ids"][0]
        return float(logp[torch.arange(start - 1, len(ids) - 1), ids[start:]].sum())


def made(name: str, folder: Path) -> Family:
    path = pictures.save(name, folder / "model")
    config, cache = ModelConfig(path=path), str(folder / "cache")
    tokenizer = load_tokenizer(config)
    file = pictures.write(folder, 6)
    pairs = prepare(DataConfig(path=str(file), cache_dir=cache), tokenizer, Data.PAIRS).train
    return Family(path, load_model(config), tokenizer, pairs, folder)


@pytest.fixture(scope="module", params=list(pictures.FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return made(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("name", pictures.PADDED)
def test_families_without_trees_give_the_numbers_of_a_plain_forward(name: str, tmp_path: Path) -> None:
    family = made(name, tmp_path)
    assert choose_layout(family.model).layout == "padded"
    expected = np.array([[family.plain(i, said) for said in ("rb" if i % 2 else "br")] for i in range(6)])
    found = np.stack([scored.sum for scored in score(family.model, family.pairs)])
    assert np.abs(found - expected).max() < NATS
    assert abs(expected[0, 0] - expected[1, 1]) > 10 * NATS


def test_both_layouts_give_the_numbers_of_a_plain_forward(family: Family) -> None:
    assert choose_layout(family.model).layout == "tree"
    expected = np.array([[family.plain(i, said) for said in ("rb" if i % 2 else "br")] for i in range(6)])
    for kind in ("tree", "padded"):
        found = np.stack([scored.sum for scored in score(family.model, family.pairs, layout=kind)])
        assert np.abs(found - expected).max() < NATS
    alone = np.stack([score(family.model, family.pairs[i : i + 1], layout="tree")[0].sum for i in range(6)])
    assert np.abs(alone - expected).max() < NATS
    assert abs(expected[0, 0] - expected[1, 1]) > 10 * NATS  # one answer to two colours: the model sees them


def test_one_image_is_read_once_for_a_tree_and_other_images_are_other_prompts(family: Family) -> None:
    inputs = inputs_of(family.model)
    records = [family.pairs[0], family.pairs[0], family.pairs[3]]  # of one size: of the same tokens
    branches = [Branch(r.prompt, c) for r in records for c in r.completions]
    shown = {kind: MicroBatch.of(branches, kind, images=inputs).row for kind in ("tree", "padded")}
    assert [len(shown[kind].images.prompts) for kind in ("tree", "padded")] == [2, 6]  # type: ignore[union-attr]
    alike, other = records[0].prompt, records[2].prompt
    assert inputs is not None
    assert np.array_equal(inputs.ids(alike), inputs.ids(other))
    assert not np.array_equal(alike, other)
    once = inputs.pixels([alike, other])
    assert {n: v.shape for n, v in shown["tree"].images.inputs.items() if n in once} == {  # type: ignore[union-attr]
        n: v.shape for n, v in once.items()
    }


def test_texts_alone_are_scored_beside_prompts_with_images(family: Family) -> None:
    plain = DataConfig(path=str(family.folder / "pairs.jsonl"), ignore=["images"], cache_dir=str(family.folder / "c"))
    texts = prepare(plain, family.tokenizer, Data.PAIRS).train
    mixed = [family.pairs[0], texts[0], family.pairs[3], texts[1]]
    for kind in ("tree", "padded"):
        together = score(family.model, mixed, layout=kind)
        for one, found in zip(mixed, together, strict=True):
            assert np.abs(found.sum - score(family.model, [one], layout="padded")[0].sum).max() < NATS


def test_greedy_texts_are_those_of_transformers(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of(family.model)
    assert inputs is not None
    prompts = [family.pairs[i].prompt for i in (0, 3, 1)]
    written = generate(family.model, [p.tolist() for p in prompts], max_new_tokens=5, eos_token_id=[-1], temperature=0)
    assert image_decoders.IMAGE_DECODERS[unwrap(family.model)] is image_decoders.ImageDecoder
    for prompt, found in zip(prompts, written, strict=True):
        ids = torch.from_numpy(inputs.ids(prompt).astype(np.int64))[None]
        given = image_arguments.image_call(inputs, [prompt], ids, family.model)
        theirs = family.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **given, max_new_tokens=5, do_sample=False,
            eos_token_id=None, pad_token_id=2, suppress_tokens=inputs.reserved,
        )  # fmt: skip
        assert found == theirs[0, ids.shape[1] :].tolist()
    monkeypatch.setitem(image_decoders.IMAGE_DECODERS, unwrap(family.model), image_decoders.PlainImageDecoder)
    whole = generate(family.model, [p.tolist() for p in prompts], max_new_tokens=5, eos_token_id=[-1], temperature=0)
    assert whole == written


def test_samples_with_images_do_not_depend_on_the_batch(family: Family) -> None:
    prompts = [family.pairs[i].prompt.tolist() for i in (0, 0, 3, 1, 3)]
    how: dict[str, Any] = {"max_new_tokens": 6, "eos_token_id": [1], "temperature": 1.0, "seed": 3}
    together = generate(family.model, prompts, **how)
    assert together == generate(family.model, prompts, batch_size=2, **how)
    reserved = set(inputs_of(family.model).reserved)  # type: ignore[union-attr]
    assert not any(reserved & set(text) for text in together)


def test_an_image_that_changed_or_went_is_named(family: Family) -> None:
    file = family.folder / "2.png"
    content = file.read_bytes()
    try:
        file.write_bytes((family.folder / "4.png").read_bytes())
        with pytest.raises(UserError, match=r"2\.png has changed"):
            score(family.model, family.pairs[2:3])
        file.unlink()
        with pytest.raises(UserError, match=r"2\.png cannot be read any more"):
            score(family.model, family.pairs[2:3])
    finally:
        file.write_bytes(content)


def test_a_model_without_its_processor_takes_no_images(family: Family) -> None:
    inputs = inputs_of(family.model)
    assert inputs is not None
    with Policy(family.model) as policy:
        attach(family.model, None)  # type: ignore[arg-type]
        try:
            with pytest.raises(UserError, match="without its processor"):
                score(policy, family.pairs[:1])
        finally:
            attach(family.model, inputs)


def test_positions_in_a_plane_and_blocks_of_images_are_what_makes_trees_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without either, the numeric check finds the numbers wrong, and the model gets padded rows."""

    def in_a_line(decoder: Any, input_ids: Tensor, plan: layout.TreePlan, given: dict[str, Any]) -> Tensor:
        return plan.position.expand(3, 1, -1)

    config = ModelConfig(path=pictures.save("qwen2_vl", tmp_path / "qwen"))
    with monkeypatch.context() as patched:
        patched.setattr(image_arguments, "tree_positions", in_a_line)
        verdict = choose_layout(load_model(config))
    assert verdict.layout == "padded"
    assert "numeric check" in verdict.reason
    config = ModelConfig(path=pictures.save("gemma3", tmp_path / "gemma"))
    monkeypatch.setattr(image_arguments, "_blocks", lambda types, plan: torch.full_like(types, -1))
    verdict = choose_layout(load_model(config))
    assert verdict.layout == "padded"
    assert "numeric check" in verdict.reason


def test_long_trees_and_the_mask_of_the_fused_kernel_let_an_image_see_itself() -> None:
    image = torch.tensor([-1, 0, 0, 0, -1, 1, 1])
    seen = _causal(7, 7, None, torch.device("cpu"), image)[0, 0]
    expected = torch.ones(7, 7, dtype=torch.bool).tril()
    expected[1:4, 1:4] = True
    expected[5:, 5:] = True
    assert torch.equal(seen, expected)
    zeros = torch.zeros(7, dtype=torch.long)
    plan = layout.TreePlan((), zeros, zeros, torch.arange(7), image)
    q, k = torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")
    assert torch.equal(mask_of(plan, None)(zeros, zeros, q, k), expected)
