"""What a model writes on held-out prompts: texts to be read, and the KL to the model that training started from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.run import RunConfig


def greedy_texts(config: RunConfig, model: Any, tokenizer: Any, held_out: Any) -> list[tuple[str, str]]:
    """(prompt, greedy continuation) of the first `evaluation.texts` held-out prompts."""
    from prefopt.engine import generate

    prompts = _prompts(held_out, config.evaluation.texts)
    ends = _ends(model, tokenizer)
    if not prompts or not ends:
        return []
    texts = generate(model, prompts, max_new_tokens=config.evaluation.max_new_tokens, eos_token_id=ends, temperature=0)
    return [
        (tokenizer.decode(p), tokenizer.decode(t, skip_special_tokens=True))
        for p, t in zip(prompts, texts, strict=True)
    ]


def side_by_side(before: list[tuple[str, str]], after: list[tuple[str, str]]) -> list[dict[str, str]]:
    """The rows of `samples.jsonl`, from what `greedy_texts` gave before and after training."""
    return [{"prompt": p, "before": b, "after": a} for (p, b), (_, a) in zip(before, after, strict=True)]


def kl_to_start(config: RunConfig, model: Any, tokenizer: Any, held_out: Any) -> dict[str, float]:
    """KL(policy || model at the start) on the policy's own continuations, in nats per text, with its standard error."""
    from prefopt.engine import generate
    from prefopt.engine.divergence import divergence
    from prefopt.models import load_model

    prompts = _prompts(held_out, config.evaluation.kl_prompts)
    ends = _ends(model, tokenizer)
    if len(prompts) < 2 or not ends:
        return {}
    limit = config.evaluation.max_new_tokens
    texts = generate(model, prompts, max_new_tokens=limit, eos_token_id=ends, temperature=1.0, seed=config.seed)
    reference = load_model(config.model, config.model.reference or config.model.path).to(model.device)
    exact = divergence(model, reference, prompts, texts, max_tokens=config.batch.max_tokens or 4096).exact_vocabulary
    return {"kl": float(exact.mean()), "kl_sem": float(exact.std(ddof=1) / len(exact) ** 0.5)}


def _prompts(held_out: Any, count: int) -> list[list[int]]:
    """The first prompts of the held-out records, each once."""
    found: dict[tuple[int, ...], None] = {}
    for i in range(len(held_out) if held_out is not None else 0):
        if len(found) == count:
            break
        found[tuple(held_out[i].prompt.tolist())] = None
    return [list(p) for p in found]


def _ends(model: Any, tokenizer: Any) -> list[int]:
    declared = getattr(model.generation_config, "eos_token_id", None)
    ends = {declared} if isinstance(declared, int) else set(declared or ())
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    return sorted(ends)
