"""Loads an exported folder with transformers alone: `python -I export_fresh.py < request.json`.

The request has `folder`, `dtype`, `sequences` (prompt and completion, in tokens), `turns` (messages, or null),
`reward_model`, and `images` (a file with what the model is given of the images of sequences from number `texts` on, or
null). The answer, one line of JSON, has the log-probs of each completion's tokens, what the chat template
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
from safetensors.torch import load_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)


def main() -> None:
    """Answer one request."""
    torch.set_num_threads(1)
    request = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(request["folder"])
    kind: Any = AutoModelForImageTextToText if request["images"] else AutoModelForCausalLM
    kind = AutoModelForSequenceClassification if request["reward_model"] else kind
    dtype = getattr(torch, request["dtype"])
    model: Any = kind.from_pretrained(request["folder"], dtype=dtype, use_safetensors=True)
    model.eval()
    first = request["texts"]
    shown = images(request["images"], dtype)
    answer: dict[str, Any] = {"logps": [], "prompt": None, "written": []}
    with torch.no_grad():
        if request["reward_model"]:
            texts = [p + c for p, c in request["sequences"]]
            answer["scores"] = scores(model, tokenizer, texts[:first])
            answer["scores"]["alone"] += [
                model(input_ids=torch.tensor([text]), **shown.get(i, {})).logits.item()
                for i, text in enumerate(texts[first:])
            ]
        for i, (prompt, completion) in enumerate([] if request["reward_model"] else request["sequences"]):
            ids = torch.tensor([prompt + completion])
            logits = model(input_ids=ids, **shown.get(i - first, {})).logits[0, len(prompt) - 1 : -1].double()
            chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
            answer["logps"].append((chosen - logits.logsumexp(-1)).tolist())
        if not request["reward_model"]:
            head = torch.tensor([request["sequences"][0][0]])
            written = model.generate(head, attention_mask=torch.ones_like(head), max_new_tokens=4, do_sample=False)
            answer["written"] = written[0, head.shape[1] :].tolist()
    if request["turns"]:
        answer["prompt"] = tokenizer.apply_chat_template(request["turns"], tokenize=False, add_generation_prompt=True)
    print(json.dumps(answer))


def images(file: str | None, dtype: torch.dtype) -> dict[int, dict[str, torch.Tensor]]:
    """What the model is given of images, by the number of the sequence."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in (load_file(file) if file else {}).items():
        number, name = key.split(".", 1)
        found.setdefault(int(number), {})[name] = value.to(dtype) if value.is_floating_point() else value
    return found


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
