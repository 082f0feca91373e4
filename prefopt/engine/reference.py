"""The reference's log-probs, computed once and kept: per token, content-addressed, shared by every method and run.

A store is named after everything that changes the numbers and nothing else: the weights, the adapters and how they are
applied, the parts of the model's config that its forward reads, the precision of the computation. Entries are named
after the token ids of prompt and completion, so pairs, lists and unpaired views of the same texts find the same
entries, and so do other losses, seeds, orders and length limits. A later run computes only what is missing, and
computes a few of the entries that it reuses again.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefopt.data.tokens import TokenRecord
from prefopt.engine.forward import unwrap
from prefopt.engine.gates import rounding
from prefopt.engine.scoring import Scored, score
from prefopt.engine.store import Array, Entry, Key, ReferenceStore, entry_key
from prefopt.errors import UserError

__all__ = ["ReferenceStore", "ReferenceTable", "entry_key", "fingerprint", "reference_table"]

# A part is written after so many tokens, or so many seconds, whichever comes first: what a kill loses at most.
PART_TOKENS = 200_000
PART_SECONDS = 60.0
# Completion tokens scored between two looks at the clock, as a multiple of the tokens of a forward.
FORWARDS = 8
# Entries computed again when a store is reused.
VERIFIED = 4
# Config entries that no forward reads.
NOISE = {"_name_or_path", "name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype", "architectures",
         "_attn_implementation", "_attn_implementation_internal", "attn_implementation", "bos_token_id",
         "eos_token_id", "pad_token_id", "return_dict", "output_hidden_states", "output_attentions",
         "base_model_name_or_path", "inference_mode", "revision", "task_type", "peft_version"}  # fmt: skip


def fingerprint(model: Any, precision: str | None = None) -> str:
    """A hash of all that a model's log-probs depend on: weights, config, adapters, precision ("bf16" under autocast).

    Reads every weight once. Call it before the model is sharded. Fresh LoRA adapters of any seed have one fingerprint.
    """
    digest = hashlib.blake2b(digest_size=16)
    facts = [_quiet(unwrap(model).config.to_dict()), _adapters(model), precision, torch.get_float32_matmul_precision()]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    seen: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    idle = {n for n, t in state.items() if ".lora_B." in n and not t.detach().any()}  # B A = 0, whatever A is
    for name, tensor in state.items():
        if name.replace(".lora_A.", ".lora_B.") in idle:
            continue
        if not isinstance(tensor, torch.Tensor):
            digest.update(f"{name}={tensor!r}".encode())
        elif id(tensor) in seen:  # a tied weight
            digest.update(f"{name}={seen[id(tensor)]}".encode())
        else:
            seen[id(tensor)] = name
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _adapters(model: Any) -> Any:
    """What weights do not say of adapters: their settings, and which are active, merged or switched off, where."""
    if not hasattr(model, "peft_config"):
        return None
    settings = {name: _quiet(config.to_dict()) for name, config in model.peft_config.items()}
    layers = {
        name: [
            module.active_adapters,
            module.disable_adapters,
            module.merged_adapters,
            getattr(module, "scaling", None),
        ]
        for name, module in model.named_modules()
        if hasattr(module, "merged_adapters") and hasattr(module, "disable_adapters")
    }
    return [settings, layers]


def _quiet(config: Any) -> Any:
    """A config without the entries that change no number, on every level; sets in one order."""
    if isinstance(config, dict):
        return {str(k): _quiet(v) for k, v in config.items() if k not in NOISE}
    return sorted(map(str, config)) if isinstance(config, set) else config


@dataclass(frozen=True, eq=False)
class ReferenceTable:
    """The reference's log-probs of the completions of some records, flat over the records.

    Attributes:
        sum: (C,) float32 nats.
        offsets: (N + 1,) record i has completions `offsets[i]` to `offsets[i + 1] - 1`.
        hits, misses: entries found in the store, and computed now.
    """

    sum: NDArray[np.float32]
    offsets: NDArray[np.int64]
    hits: int
    misses: int
    _token: list[Array]
    _entropy: list[Array] | None

    def token(self, record: int) -> list[Array]:
        """Per-token log-probs of each completion of a record, memory-mapped."""
        return self._token[self.offsets[record] : self.offsets[record + 1]]

    def entropy(self, record: int) -> list[Array]:
        """Per-token entropies of the reference's distribution."""
        if self._entropy is None:
            raise ValueError("this table was made without entropies")
        return self._entropy[self.offsets[record] : self.offsets[record + 1]]


def reference_table(
    model: Any,
    records: Sequence[TokenRecord],
    store: ReferenceStore,
    *,
    max_tokens: int = 4096,
    entropy: bool = False,
    process: tuple[int, int] = (0, 1),
    barrier: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] = lambda n: None,
) -> ReferenceTable:
    """The table of `records`, from the store where it has them, else computed with `model` and added to it.

    Args:
        model: the reference, as the store's fingerprint saw it.
        records: what is to be scored.
        store: where entries are kept.
        max_tokens: tokens of one forward.
        entropy: also the entropies of the reference's distributions.
        process: (rank, count) of the processes that build the table together; each computes its share of what is
            missing, `barrier` waits for the others.
        progress: called with the number of records done.

    Raises:
        UserError: entries in the store are not what was written, or not what the model gives now.
    """
    keys = [[entry_key(r.prompt, c) for c in r.completions] for r in records]
    store.refresh()
    store.check()
    missing = _missing(keys, store, entropy)
    hits = sum(map(len, keys)) - sum(map(len, missing.values()))
    if hits > 0:
        _verify(model, records, keys, store, entropy)
    progress(len(records) - len(missing))
    rank, count = process
    # By the record's content, not by its place among the missing: processes may see different stores.
    mine = [i for i in missing if int.from_bytes(keys[i][0][:8], "little") % count == rank]
    _fill(model, records, keys, {i: missing[i] for i in mine}, store, max_tokens, entropy, progress)
    barrier()
    store.refresh()
    found = [store.get(k, entropy) for record in keys for k in record]
    rows = [entry for entry in found if entry is not None]
    if len(rows) < len(found):
        raise UserError(f"the reference store {store.folder} lost entries while it was built: is another process "
                        "pruning it? Start again")  # fmt: skip
    store.touch()
    return ReferenceTable(
        sum=np.array([token.sum(dtype=np.float64) for token, _ in rows], np.float32),
        offsets=np.cumsum([0, *map(len, keys)], dtype=np.int64),
        hits=hits,
        misses=len(rows) - hits,
        _token=[token for token, _ in rows],
        _entropy=[values for _, values in rows if values is not None] if entropy else None,
    )


def _missing(keys: list[list[Key]], store: ReferenceStore, entropy: bool) -> dict[int, list[int]]:
    """Record -> its completions that the store lacks, each text once."""
    missing: dict[int, list[int]] = {}
    asked: set[Key] = set()
    for i, record in enumerate(keys):
        for c, key in enumerate(record):
            if key not in asked and store.get(key, entropy) is None:
                asked.add(key)
                missing.setdefault(i, []).append(c)
    return missing


def _fill(
    model: Any,
    records: Sequence[TokenRecord],
    keys: list[list[Key]],
    missing: dict[int, list[int]],
    store: ReferenceStore,
    max_tokens: int,
    entropy: bool,
    progress: Callable[[int], None],
) -> None:
    """Compute what is missing, and write it part by part."""
    entries: dict[Key, Entry] = {}
    tokens, since = 0, time.monotonic()
    for batch in _batches(records, missing, FORWARDS * max_tokens):
        todo = [_only(records[i], missing[i]) for i in batch]
        found = score(model, todo, max_tokens=max_tokens, tokens=True, entropy=entropy, progress=progress)
        for i, scored in zip(batch, found, strict=True):
            entries |= _entries(keys[i], missing[i], scored)
            tokens += int(scored.num_tokens.sum())
        if tokens >= PART_TOKENS or time.monotonic() - since >= PART_SECONDS:
            store.add(entries)
            entries, tokens, since = {}, 0, time.monotonic()
    store.add(entries)


def _batches(records: Sequence[TokenRecord], missing: dict[int, list[int]], tokens: int) -> list[list[int]]:
    """Records in batches of about so many tokens, longest first: a budget that is too small shows at once."""

    def size(i: int) -> int:
        return len(records[i].prompt) + sum(len(records[i].completions[c]) for c in missing[i])

    batches: list[list[int]] = []
    room = 0
    for i in sorted(missing, key=lambda i: (-size(i), i)):
        if not batches or room < size(i):
            batches.append([])
            room = tokens
        batches[-1].append(i)
        room -= size(i)
    return batches


def _only(record: TokenRecord, completions: list[int]) -> TokenRecord:
    kept = tuple(record.completions[c] for c in completions)
    return TokenRecord(id=record.id, kind=record.kind, prompt=record.prompt, completions=kept)


def _entries(keys: list[Key], completions: list[int], scored: Scored) -> dict[Key, Entry]:
    assert scored.token is not None
    return {
        keys[c]: (scored.token[n], scored.entropy[n] if scored.entropy is not None else None)
        for n, c in enumerate(completions)
    }


def _verify(
    model: Any, records: Sequence[TokenRecord], keys: list[list[Key]], store: ReferenceStore, entropy: bool
) -> None:
    """Compute a few entries again that are about to be reused."""
    have = [(i, c) for i, r in enumerate(keys) for c, k in enumerate(r) if store.get(k, entropy) is not None]
    tolerance = rounding(model)
    for i, c in random.sample(have, min(VERIFIED, len(have))):
        entry = store.get(keys[i][c], entropy)
        assert entry is not None
        scored = score(model, [_only(records[i], [c])], max_tokens=2**31, tokens=True)[0]
        assert scored.token is not None
        error = float(np.abs(scored.token[0] - entry[0]).max())
        if not error <= tolerance:
            raise UserError(
                f"the reference store {store.folder} disagrees with the model by {error:.2g} nats on a token of record "
                f"{records[i].id}: it was changed, or made by other versions of the libraries; delete it with "
                f"`prefopt reference prune {store.folder.name}`"
            )
