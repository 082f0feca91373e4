"""Draws samples from a vLLM server, hands it the policy's weights, and corrects ratios for its numerics.

The server speaks the protocol of OpenAI's completions with vLLM's extensions (token ids in and out). Weights travel
through a folder that both can read: vLLM's own `reload_weights` for a whole model, `load_lora_adapter` for an adapter.

Read in vllm-project/vllm, in files at the commits named: `reload_weights(weights_iterator, weights_path,
is_checkpoint_format)` of vllm/v1/worker/gpu_model_runner.py@000fc94, called as here by
tests/model_executor/model_loader/test_reload.py@026bb17; POST /pause?mode=wait and /resume of
vllm/entrypoints/serve/dev/rlhf/api_router.py@0100a21; POST /collective_rpc {method, args, kwargs} of
vllm/entrypoints/serve/rpc/api_router.py@09cb327, and /reset_prefix_cache of serve/cache/api_router.py@09cb327, both
there under VLLM_SERVER_DEV_MODE alone; POST /v1/load_lora_adapter {lora_name, lora_path} and /v1/unload_lora_adapter
{lora_name} of vllm/entrypoints/serve/lora/api_router.py@27873ca, there under VLLM_ALLOW_RUNTIME_LORA_UPDATING alone;
the fields of a request of vllm/entrypoints/openai/completion/protocol.py@002032e. Its `update_weights` (NCCL, CUDA IPC)
needs the trainer's process in a group with the server's, and is not used.
"""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.files import new_folder, remove
from prefopt.engine.generation import SampledText
from prefopt.errors import TrainingError, UserError, first_line

Floats = NDArray[np.floating[Any]]

TOGETHER = 32  # requests at once: the server batches them
MOST_APART = 0.5  # nats a token, on average: more is another model, not another precision
# All that decides about the distribution that texts are drawn from, so that no default of the server or of the model's
# generation_config does.
WHOLE_DISTRIBUTION = {
    "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "min_tokens": 0, "ignore_eos": False, "skip_special_tokens": False,
    "logprobs": 1, "return_token_ids": True, "stream": False,
}  # fmt: skip


@dataclass(eq=False)
class VllmServer:
    """A vLLM server that has, or is given, the policy's weights.

    Attributes:
        url: where it listens, such as http://localhost:8000.
        folder: for weights; the server reads them there.
        max_stale: rollouts that the server's weights may be behind the policy.
        version: the rollout whose weights it has; None before the first.
        name: the model that requests ask for.
    """

    url: str
    folder: Path
    max_stale: int = 0
    version: int | None = None
    name: str = field(default="", init=False)

    def sync(self, model: Any, number: int) -> int:
        """Give the server the weights of rollout `number`, unless those it has are fresh enough.

        Returns:
            The rollout whose weights it now has.

        Raises:
            UserError: the server does not answer, or refuses.
        """
        if self.version is not None and number - self.version <= self.max_stale:
            return self.version
        target = self.folder / f"weights-{number}"
        with new_folder(target, replace=True) as made:
            model.save_pretrained(made)
        if hasattr(model, "peft_config"):
            self._load_adapter(target, number)
        else:
            self._reload(target)
        for old in self.folder.glob("weights-*"):
            if old != target:
                remove(old)
        self.version = number
        return number

    def _reload(self, target: Path) -> None:
        """Whole weights; the prefix cache of the old ones is dropped."""
        models = self._call("/v1/models")
        try:
            self.name = str(models["data"][0]["id"])
        except (TypeError, KeyError, IndexError) as error:
            raise UserError(f"rollout.url={self.url}/v1/models names no model ({str(models)[:80]}): give the address "
                            "of a vLLM server, without /v1") from error  # fmt: skip
        self._call("/pause?mode=wait", {})
        weights = {"method": "reload_weights", "kwargs": {"weights_path": str(target.resolve())}}
        self._call("/collective_rpc", weights)
        self._call("/reset_prefix_cache", {})
        self._call("/resume", {})

    def _load_adapter(self, target: Path, number: int) -> None:
        """An adapter under a name of its own, so that nothing that is cached for the old one is taken for it."""
        before, self.name = self.name, f"prefopt-{number}"
        self._call("/v1/load_lora_adapter", {"lora_name": self.name, "lora_path": str(target.resolve())})
        if before:
            self._call("/v1/unload_lora_adapter", {"lora_name": before})

    def draw(
        self, prompts: Sequence[Sequence[int]], count: int, seeds: Sequence[int], ends: Sequence[int], *,
        max_new_tokens: int, temperature: float,
    ) -> list[list[SampledText]]:  # fmt: skip
        """`count` texts behind each prompt, with the server's log-prob of each token.

        Raises:
            UserError: the server does not answer, or refuses.
            TrainingError: an answer lacks token ids or a log-prob, or is another number of texts.
        """
        shared = {"n": count, "max_tokens": max_new_tokens, "temperature": temperature, "stop_token_ids": list(ends)}

        if any(min(prompt) < 0 for prompt in prompts):
            raise UserError("a prompt has an image, and a vLLM server is given token ids alone: sample with the policy "
                            "itself (rollout.sampler=own)")  # fmt: skip

        def one(prompt: Sequence[int], seed: int) -> list[SampledText]:
            asked = {"model": self.name, "prompt": list(prompt), "seed": seed, **shared, **WHOLE_DISTRIBUTION}
            answer = self._call("/v1/completions", asked)
            choices = answer.get("choices") if isinstance(answer, dict) else None
            if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
                raise TrainingError(f"{self.url} gave no texts: {str(answer)[:200]}")
            if len(choices) != count:
                raise TrainingError(f"{self.url} gave {len(choices)} texts where {count} were asked for")
            return [_text(choice, ends, self.url) for choice in sorted(choices, key=lambda c: int(c.get("index", 0)))]

        with ThreadPoolExecutor(TOGETHER) as pool:
            return list(pool.map(one, prompts, seeds))

    def _call(self, path: str, body: Any = None) -> Any:
        """The JSON answer to a request: GET without a body, else POST."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url.rstrip("/") + path, data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=3600) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode("utf-8", "replace").split())[:200] or error.reason
            raise UserError(f"rollout.url={self.url}{path} answers {error.code}: {said}. A server is started as "
                            "docs/own_samples.md says, under VLLM_SERVER_DEV_MODE=1") from error  # fmt: skip
        except (OSError, ValueError, HTTPException) as error:
            raise UserError(f"rollout.url={self.url} does not answer ({first_line(error)}): start the vLLM server, or "
                            "leave out rollout.sampler=vllm") from error  # fmt: skip
        try:
            return json.loads(text) if text else {}
        except ValueError:
            return {}


def _text(choice: Any, ends: Sequence[int], url: str) -> SampledText:
    """One text of an answer. A log-prob that is missing is an error: as 0 it would be a certain token."""
    tokens, found = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if not tokens:
        raise TrainingError(f"{url} gave a text without token_ids: prefopt needs a vLLM that knows return_token_ids")
    if not isinstance(found, list) or len(found) != len(tokens):
        had = len(found) if isinstance(found, list) else 0
        raise TrainingError(f"{url} gave {had} log-probs for {len(tokens)} tokens")
    missing = [place for place, value in enumerate(found) if value is None or not math.isfinite(value)]
    if missing:
        raise TrainingError(f"{url} gave no log-prob for token {missing[0]} of a text of {len(tokens)} tokens")
    if (choice.get("finish_reason") == "stop") != (tokens[-1] in ends):
        raise TrainingError(f"{url} says that a text ended by {choice.get('finish_reason')!r}, but its last token is "
                            f"{tokens[-1]}, and those that end a text are {list(ends)}")  # fmt: skip
    return SampledText([int(token) for token in tokens], np.array(found, np.float64))


def sampler_figures(texts: Sequence[SampledText], own: Sequence[Floats]) -> dict[str, float]:
    """How far the server's log-probs are from the policy's, whose `own` are, in nats a token.

    Raises:
        TrainingError: so far that they are those of another model.
    """
    apart = np.concatenate([text.logps - mine for text, mine in zip(texts, own, strict=True)])
    mean = float(np.abs(apart).mean())
    if not mean <= MOST_APART:
        raise TrainingError(
            f"the server does not have the policy's weights: its log-probs are {mean:.3g} nats a token from the "
            "policy's, on average. Did it take the new weights (is rollout.url a vLLM server under "
            "VLLM_SERVER_DEV_MODE=1 that can read the folder of the run), and does it return raw log-probs?"
        )
    return {"sampler/deviation": mean, "sampler/max_deviation": float(np.abs(apart).max())}


def correction(how: str, limit: float, sampler: Floats, own: Floats) -> Floats:
    """(n,) the weights of a text's tokens for having been drawn by the server and not by the policy.

    Args:
        how: `token_clip`: the ratio of each token, at most `limit`; `sequence_mask`: the ratio of the whole text, or 0
            where it is beyond `limit` or below its inverse.
        limit: of a ratio.
        sampler, own: (n,) log-probs of the server and of the policy.
    """
    apart = own - sampler
    if how == "token_clip":
        return np.minimum(np.exp(np.minimum(apart, math.log(limit))), limit)
    total = float(apart.sum())
    return np.full(len(apart), math.exp(total) if abs(total) <= math.log(limit) else 0.0)
