"""A vLLM server as sampler: a stub speaks its protocol on this machine, with the faults that servers have."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prefopt.engine.generation import sample
from prefopt.errors import TrainingError, UserError
from prefopt.losses.registry import load
from prefopt.models import adapters
from prefopt.models.peft_config import PeftConfig
from prefopt.train.sources.rollout_config import RolloutConfig
from prefopt.train.sources.rollouts import Rollout
from prefopt.train.sources.vllm_server import WHOLE_DISTRIBUTION, correction
from tests.train import own_texts, tiny


class Stub:
    """What a vLLM server does, with the tiny model: completions of token ids, new weights, adapters."""

    def __init__(self) -> None:
        self.model = tiny.model()
        self.calls: list[tuple[str, Any]] = []
        self.fault = ""
        self.paused = False
        self.lock = threading.Lock()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        with self.lock:
            self.calls.append((path, body))
            if path == "/v1/models" and self.fault == "no model":
                return 200, []
            if path == "/v1/models":
                return 200, {"data": [{"id": "served"}]}
            if path == "/v1/completions" and self.fault == "no texts":
                return 200, ["busy"]
            if path == "/v1/completions":
                assert not self.paused
                return 200, {"choices": self._choices(body)}
            if path == "/collective_rpc":
                assert body.keys() <= {"method", "timeout", "args", "kwargs"}
                getattr(self, body["method"])(*body.get("args", []), **body.get("kwargs", {}))
                return 200, {"results": [None]}  # of each worker
            if path == "/reset_prefix_cache":
                return 200, None  # no body
            if path in ("/pause?mode=wait", "/resume"):
                self.paused = path != "/resume"
                return 200, {"status": "paused" if self.paused else "resumed"}
            if path == "/v1/load_lora_adapter" and self.fault == "refuses":
                return 400, {"error": "LoRA is not enabled"}
            return 200, f"Success: LoRA adapter '{body['lora_name']}'."

    def reload_weights(
        self, weights_iterator: Any = None, weights_path: str | None = None, is_checkpoint_format: bool = True
    ) -> None:
        """With the signature of vLLM's model runner."""
        assert self.paused, "weights change between requests only"
        if self.fault != "deaf":
            assert weights_iterator is None
            assert weights_path is not None
            self.model.load_state_dict(load_file(Path(weights_path) / "model.safetensors"))

    def _choices(self, body: Any) -> list[dict[str, Any]]:
        assert body.items() >= WHOLE_DISTRIBUTION.items()
        uniforms = np.random.default_rng(body["seed"]).random((body["n"], body["max_tokens"]))
        texts = sample(self.model, [body["prompt"]] * body["n"], uniforms, eos_token_id=body["stop_token_ids"],
                       temperature=body["temperature"])  # fmt: skip
        found = []
        for index, text in enumerate(texts):
            logps: list[float | None] = text.logps.tolist()
            if self.fault == "no log-prob":
                logps[-1] = None
            if self.fault == "coarse":
                logps = text_as_bfloat16(text.logps)
            ended = text.tokens[-1] in body["stop_token_ids"]
            found.append({"index": index, "text": "", "token_ids": text.tokens, "logprobs": {"token_logprobs": logps},
                          "finish_reason": "stop" if ended else "length"})  # fmt: skip
        if self.fault == "no token ids":
            del found[0]["token_ids"]
        if self.fault == "fewer":
            found.pop()
        return found[::-1]


def text_as_bfloat16(logps: Any) -> list[float | None]:
    """Log-probs as a server in another precision has them."""
    coarse: list[float | None] = torch.tensor(logps).to(torch.bfloat16).tolist()
    return coarse


@pytest.fixture
def stub() -> Iterator[tuple[Stub, str]]:
    served = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, body: Any) -> None:
            code, answer = served.answer(self.path, body)
            content = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content) + 9 * (served.fault == "dies")))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield served, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def served(url: str, **changes: Any) -> RolloutConfig:
    given = {"num_generations": 4, "max_new_tokens": 5, "sampler": "vllm", "url": url, "correction": "sequence_mask"}
    return RolloutConfig(**{**given, **changes})


@pytest.mark.parametrize("name", ["rloo", "reinforce_pp", "dpo"])
def test_a_run_learns_from_texts_of_the_server(name: str, stub: tuple[Stub, str], tmp_path: Path) -> None:
    """Each rollout is drawn with the weights of its step, and nothing of the model's own generation settings."""
    served_by, url = stub
    how = "token_clip" if name == "reinforce_pp" else "sequence_mask"
    rollout = served(url, correction=None if name == "dpo" else how)
    kept = own_texts.run(name, tmp_path, rollout=rollout, max_steps=3, learning_rate=1e-2)
    for log in kept.logs:
        assert log["sampler/max_deviation"] < 1e-5, "the stub has the policy's weights, in the same precision"
        assert log["ratio/max_deviation"] < 1e-5
    weights = [body["kwargs"]["weights_path"] for path, body in served_by.calls if path == "/collective_rpc"]
    assert [Path(folder).name for folder in weights] == ["weights-0", "weights-1", "weights-2"]
    assert [path.name for path in tmp_path.glob("weights-*")] == ["weights-2"], "old ones are removed"
    assert [path for path, _ in served_by.calls[:5]] == [
        "/v1/models", "/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/resume",
    ]  # fmt: skip


def test_another_precision_is_corrected_for(stub: tuple[Stub, str], tmp_path: Path) -> None:
    """The first update has ratio 1 to the policy's own log-probs, and advantages carry the weights of the texts."""
    stub[0].fault = "coarse"
    looked: list[Rollout] = []
    kept = own_texts.run("rloo", tmp_path, rollout=served(stub[1]), max_steps=1, look=looked.append)
    assert kept.logs[0]["ratio/max_deviation"] < 1e-5
    assert kept.logs[0]["sampler/max_deviation"] > 1e-4
    rollout = looked[0]
    assert rollout.advantages is not None
    centred = rollout.rewards - (rollout.rewards.sum(1, keepdims=True) - rollout.rewards) / 3
    weights = rollout.advantages / centred
    assert np.abs(weights - 1).max() > 1e-4
    assert np.abs(weights - 1).max() < 0.2


def test_an_adapter_is_loaded_under_a_new_name(stub: tuple[Stub, str], tmp_path: Path) -> None:
    served_by, url = stub
    policy = adapters.attach(tiny.model(), PeftConfig(method="lora", r=2), seed=0).to(torch.float64)
    own_texts.run("rloo", tmp_path, policy, rollout=served(url, max_stale=1), max_steps=3, learning_rate=1e-6)
    calls = [(path, body["lora_name"]) for path, body in served_by.calls if "lora" in path]
    assert calls == [
        ("/v1/load_lora_adapter", "prefopt-0"),
        (
            "/v1/load_lora_adapter",
            "prefopt-2",
        ),  # max_stale=1: the second rollout is drawn with the weights of the first
        ("/v1/unload_lora_adapter", "prefopt-0"),
    ]
    models = [body["model"] for path, body in served_by.calls if path == "/v1/completions"]
    assert models == ["prefopt-0"] * 6 + ["prefopt-2"] * 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no log-prob", "gave no log-prob for token"),
        ("no token ids", "gave a text without token_ids"),
        ("fewer", "gave 3 texts where 4 were asked for"),
        ("no texts", "gave no texts: .'busy'"),
    ],
)
def test_an_incomplete_answer_stops_the_run(fault: str, message: str, stub: tuple[Stub, str], tmp_path: Path) -> None:
    stub[0].fault = fault
    with pytest.raises(TrainingError, match=message):
        own_texts.run("rloo", tmp_path, rollout=served(stub[1]), max_steps=1)


def test_a_server_without_the_new_weights_stops_the_run(stub: tuple[Stub, str], tmp_path: Path) -> None:
    served_by, url = stub
    served_by.fault, served_by.model = "deaf", tiny.model(seed=1)
    with torch.no_grad():
        served_by.model.lm_head.weight.mul_(30)
    with pytest.raises(TrainingError, match="the server does not have the policy's weights"):
        own_texts.run("rloo", tmp_path, rollout=served(url), max_steps=1)


def test_what_the_server_refuses_is_said(stub: tuple[Stub, str], tmp_path: Path) -> None:
    stub[0].fault = "refuses"
    policy = adapters.attach(tiny.model(), PeftConfig(method="lora", r=2), seed=0).to(torch.float64)
    with pytest.raises(UserError, match=r"load_lora_adapter answers 400: .*LoRA is not enabled"):
        own_texts.run("rloo", tmp_path, policy, rollout=served(stub[1]), max_steps=1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("dies", "does not answer .*IncompleteRead"), ("no model", "/v1/models names no model")],
)
def test_what_is_no_answer_of_such_a_server_is_said(
    fault: str, message: str, stub: tuple[Stub, str], tmp_path: Path
) -> None:
    stub[0].fault = fault
    with pytest.raises(UserError, match=message):
        own_texts.run("rloo", tmp_path, rollout=served(stub[1]), max_steps=1)


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rollout.url=http://127.0.0.1:9 does not answer"):
        own_texts.run("rloo", tmp_path, rollout=served("http://127.0.0.1:9"), max_steps=1)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("rloo", {"correction": None}, "choose rollout.correction=token_clip or sequence_mask"),
        ("rloo", {"correction": "none"}, "rollout.correction=none is not one of"),
        ("rloo", {"url": None}, "needs rollout.url"),
        ("rloo", {"sampler": "sglang"}, "rollout.sampler=sglang is not one of own, vllm"),
        ("rloo", {"sampler": "own"}, "rollout.url is of another sampler"),
        ("rloo", {"temperature": 0.7}, "log-probs at temperature 1"),
        ("rloo", {"correction_limit": 1.0}, "must be above 1"),
    ],
)
def test_options_that_do_not_go_together_are_named(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(served("http://localhost:1"), **changes).check(load(name))


def test_corrections_by_hand() -> None:
    sampler, own = np.log([0.5, 0.2]), np.log([0.6, 0.9])
    np.testing.assert_allclose(correction("token_clip", 3.0, sampler, own), [1.2, 3.0])
    np.testing.assert_allclose(correction("sequence_mask", 6.0, sampler, own), [5.4, 5.4])
    np.testing.assert_allclose(correction("sequence_mask", 5.0, sampler, own), [0.0, 0.0])
    np.testing.assert_allclose(correction("sequence_mask", 5.0, own, sampler), [0.0, 0.0])
