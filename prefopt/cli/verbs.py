"""Lists the verbs of the command line; each is a module of this package."""

from __future__ import annotations

VERBS = {
    "train": "train a model with a loss: prefopt train loss=simpo model.path=MODEL data.path=FILE",
    "compare": "compare methods on the same data with equal budgets: prefopt compare losses=[dpo,ipo]",
    "plan": "estimate the steps, tokens, memory and time of a run before it starts",
    "rerun": "repeat a finished run and check that its numbers are identical: prefopt rerun RUN",
    "replay": "recompute a batch that broke a run: prefopt replay FILE",
    "report": "write the page of a run again: verdict, figures, texts, data, cost",
    "eval": "evaluate a model on held-out records, alone or against another model",
    "sample": "sample from models on the same prompts, side by side or K times each",
    "pairs": "make preference data of samples and their rewards: prefopt pairs FILE reward=REWARD",
    "chat": "chat with a model in the terminal",
    "demo": "compare seven methods in a small world whose reward is known",
    "export": "export a tuned model for transformers, vLLM and llama.cpp: prefopt export RUN --to DIR",
    "losses": "list the losses, or check one: prefopt losses check NAME",
    "vectors": "write conformance vectors of losses as JSON: prefopt vectors --out DIR",
    "referee": "check another library's losses against the vectors: prefopt referee trl",
    "data": "inspect preference data: prefopt data check FILE, prefopt data show FILE --row ID",
    "import": "convert settings of TRL, Axolotl and others: prefopt import FILE --to OURS.yaml",
    "doctor": "show versions and what this machine supports",
    "completion": 'set up shell completion: eval "$(prefopt completion bash)"',
    "reference": "manage stored reference log-probs: build, list, verify, prune",
}
