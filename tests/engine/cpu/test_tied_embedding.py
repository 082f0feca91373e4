"""The gradient of a tied embedding: bit for bit that of torch, without a second table of the vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.engine.cpu.kernels import Kernels, is_kernel
from prefopt.engine.cpu.tied_embedding import install


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**sizes | heads | options))


def gradients(model: Any) -> dict[str, Tensor]:
    """After two micro-batches, in which tokens repeat and one is that of the padding."""
    for ids in (torch.tensor([[3, 7, 3, 3, 60, 5]]), torch.tensor([[7, 5, 5, 0, 2, 9]])):
        model(input_ids=ids).logits.log_softmax(-1)[..., 3].sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("padding", [None, 5])
def test_gradients_are_those_of_torch_to_the_bit(padding: int | None) -> None:
    expected = gradients(llama(pad_token_id=padding))
    model = llama(pad_token_id=padding)
    assert install(model) == [model.get_input_embeddings()]
    found = gradients(model)
    assert expected.keys() == found.keys()
    for name, grad in found.items():
        assert grad.layout == torch.strided
        assert torch.equal(grad, expected[name]), name


def test_the_table_is_made_once() -> None:
    model = llama(vocab_size=5000)
    install(model)
    ids = torch.tensor([[3, 7, 3]])
    embedded = model.get_input_embeddings()(ids)
    (grad,) = torch.autograd.grad(embedded.sum(), model.lm_head.weight)
    assert grad.is_sparse
    assert grad.indices().tolist() == [[3, 7]]


def test_embeddings_of_their_own_frozen_ones_and_ones_with_hooks_are_left_alone() -> None:
    untied = llama(tie_word_embeddings=False)
    assert install(untied) == []
    hooked = llama()
    hooked.get_input_embeddings().register_forward_hook(lambda *_: None)
    assert install(hooked) == []
    frozen = llama().requires_grad_(False)
    with Kernels(install(frozen)):
        assert is_kernel(frozen.get_input_embeddings())
        assert not frozen.get_input_embeddings()(torch.tensor([1])).requires_grad


def test_the_own_forward_comes_back() -> None:
    model = llama()
    with Kernels(install(model)):
        assert is_kernel(model.get_input_embeddings())
    assert type(model.get_input_embeddings()) is nn.Embedding
    assert not is_kernel(model.get_input_embeddings())
