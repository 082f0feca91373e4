"""Loads an exported folder with transformers alone: `python -I export_fresh.py < request.json`.

The request has `folder`, `dtype`, `sequences` (prompt and completion, in tokens) and `turns` (messages, or null). The
answer, one line of JSON, has the log-probs of each completion's tokens, what the chat template makes of the turns, and
a few tokens that the model writes.
"""

import json
import os
import sys
from typing import Any

sys.modules["prefopt"] = None  # type: ignore[assignment]  # importing it fails from here on
os.environ["HF_HUB_OFFLINE"] = "1"  # everything must be in the folder

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


def main() -> None:
    """Answer one request."""
    torch.set_num_threads(1)
    request = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(request["folder"])
    model: Any = AutoModelForCausalLM.from_pretrained(
        request["folder"], dtype=getattr(torch, request["dtype"]), use_safetensors=True
    )
    model.eval()
    answer: dict[str, Any] = {"logps": [], "prompt": None, "written": []}
    with torch.no_grad():
        for prompt, completion in request["sequences"]:
            ids = torch.tensor([prompt + completion])
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
            chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
            answer["logps"].append((chosen - logits.logsumexp(-1)).tolist())
        first = torch.tensor([request["sequences"][0][0]])
        written = model.generate(first, attention_mask=torch.ones_like(first), max_new_tokens=4, do_sample=False)
        answer["written"] = written[0, first.shape[1] :].tolist()
    if request["turns"]:
        answer["prompt"] = tokenizer.apply_chat_template(request["turns"], tokenize=False, add_generation_prompt=True)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
