"""Loads an exported folder with transformers alone: `python -I export_fresh.py < request.json`.

The request has `folder`, `dtype`, `sequences` (prompt and completion, in tokens), `turns` (messages, or null) and
`reward_model`. The answer, one line of JSON, has the log-probs of each completion's tokens, what the chat template
makes of the turns, and a few tokens that the model writes; of a reward model the scores, one text at a time and in
batches that are padded on either side.
"""

import json
import os
import sys
from typing import Any

sys.modules["prefopt"] = None  # type: ignore[assignment]  # importing it fails from here on
os.environ["HF_HUB_OFFLINE"] = "1"  # everything must be in the folder

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402


def main() -> None:
    """Answer one request."""
    torch.set_num_threads(1)
    request = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(request["folder"])
    kind: Any = AutoModelForSequenceClassification if request["reward_model"] else AutoModelForCausalLM
    model: Any = kind.from_pretrained(request["folder"], dtype=getattr(torch, request["dtype"]), use_safetensors=True)
    model.eval()
    answer: dict[str, Any] = {"logps": [], "prompt": None, "written": []}
    with torch.no_grad():
        if request["reward_model"]:
            answer["scores"] = scores(model, tokenizer, [p + c for p, c in request["sequences"]])
        for prompt, completion in [] if request["reward_model"] else request["sequences"]:
            ids = torch.tensor([prompt + completion])
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
            chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
            answer["logps"].append((chosen - logits.logsumexp(-1)).tolist())
        if not request["reward_model"]:
            first = torch.tensor([request["sequences"][0][0]])
            written = model.generate(first, attention_mask=torch.ones_like(first), max_new_tokens=4, do_sample=False)
            answer["written"] = written[0, first.shape[1] :].tolist()
    if request["turns"]:
        answer["prompt"] = tokenizer.apply_chat_template(request["turns"], tokenize=False, add_generation_prompt=True)
    print(json.dumps(answer))


def scores(model: Any, tokenizer: Any, texts: list[list[int]]) -> dict[str, list[float]]:
    """The scores of texts, alone and in batches of eight."""
    found = {"alone": [model(input_ids=torch.tensor([text])).logits.item() for text in texts]}
    for side in ("right", "left"):
        tokenizer.padding_side = side
        found[side] = []
        for start in range(0, len(texts), 8):
            batch = tokenizer.pad({"input_ids": texts[start : start + 8]}, return_tensors="pt")
            found[side] += model(**batch).logits[:, 0].tolist()
    return found


if __name__ == "__main__":
    main()
