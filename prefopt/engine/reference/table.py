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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefopt.data.tokens import TokenRecord
from prefopt.engine.forward import unwrap
from prefopt.engine.gates import rounding
from prefopt.engine.reference.store import Array, Entry, Key, ReferenceStore, entry_key
from prefopt.engine.scoring import Scored, score
from prefopt.errors import UserError

__all__ = ["ReferenceStore", "ReferenceTable", "entry_key", "fingerprint", "reference_table"]

# A part is written after so many tokens, or so many seconds, whichever comes first: what a kill loses at most.
PART_TOKENS = 200_000
PART_SECONDS = 60.0
# Completion tokens scored between two looks at the clock, as a multiple of the tokens of a forward.
FORWARDS = 8
# Entries computed again when a store is reused.
VERIFIED = 4
# Config entries that change no number of a causal language model in evaluation mode: where it came from, how it is run,
# what it returns, how new weights are drawn, dropout, heads of other tasks, losses. `router_jitter_noise` is none of
# them: PhiMoE reads it in evaluation too.
NOISE = {"_name_or_path", "name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype", "architectures",
         "_attn_implementation", "_attn_implementation_internal", "attn_implementation", "bos_token_id",
         "eos_token_id", "pad_token_id", "return_dict", "output_hidden_states", "output_attentions",
         "base_model_name_or_path", "inference_mode", "revision", "task_type", "peft_version",
         "output_router_logits", "router_aux_loss_coef", "id2label", "label2id", "num_labels", "problem_type",
         "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
         "initializer_range", "initializer_factor", "init_std", "initializer_cutoff_factor", "w_init_variance_scale",
         "final_w_init_variance_scale", "rescale_prenorm_residual",
         "dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "embedding_dropout", "embed_dropout",
         "residual_dropout", "resid_dropout", "classifier_dropout", "attention_probs_dropout_prob",
         "hidden_dropout_prob", "attn_pdrop", "embd_pdrop", "emb_pdrop", "resid_pdrop", "layerdrop", "lora_dropout",
         }  # fmt: skip


def fingerprint(model: Any, precision: str | None = None) -> str:
    """A hash of all that a model's log-probs depend on: weights, config, adapters, precision ("bf16" under autocast).

    Reads every weight once. Call it before the model is sharded. Adapters that change nothing (disabled, not active, or
    a LoRA whose update is zero) are left out with their settings: the hash is that of the model without them.
    """
    causal = unwrap(model)
    facts, between, idle = _adapters(model, causal)
    settings = [_quiet(causal.config.to_dict()), facts, precision, torch.get_float32_matmul_precision()]
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16)
    seen: dict[int, str] = {}  # a tied weight is read once
    weights: set[str] = set()
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        parts = name.split(".")
        paths = list(accumulate(parts, _under))
        if idle.isdisjoint(paths):
            plain = ".".join(part for part, path in zip(parts, paths, strict=True) if path not in between)
            if id(tensor) not in seen:
                seen[id(tensor)] = _content(tensor)
            weights.add(f"{plain}={seen[id(tensor)]}")
    digest.update("\n".join(sorted(weights)).encode())  # sorted: PEFT's wrappers have an order of their own
    return digest.hexdigest()


def _content(value: Any) -> str:
    """A hash of a tensor; what else a state holds, as text."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    digest = hashlib.blake2b(f"{value.dtype}:{tuple(value.shape)}:".encode(), digest_size=16)
    digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _adapters(model: Any, causal: Any) -> tuple[Any, set[str], set[str]]:
    """What PEFT adds to a model, as paths in `model`. What is not known for certain to change nothing counts.

    Returns:
        What weights do not say of the adapters in effect: settings, and how they are applied where. None without any.
        Modules that the plain model has not, around or between its own: their names are left out of those of weights.
        Modules and tensors that the forward does not read.
    """
    at = next(name for name, module in model.named_modules() if module is causal)
    between = set(accumulate(at.split("."), _under))
    configs = next((m.peft_config for m in model.modules() if hasattr(m, "peft_config")), None)
    if not configs:
        return None, between, set()
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    idle: set[str] = set()
    counted: set[str] = set()
    applied: dict[str, Any] = {}
    known = False
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ModulesToSaveWrapper):
            kinds = {_under(path, "original_module")} | {_copy_of(path, a) for a in module.modules_to_save}
            read = _read_by(path, module)
            between |= {_under(path, "modules_to_save"), read}
            idle |= kinds - {read}  # a copy counts as the module itself: fresh ones are equal
        elif isinstance(module, TrainableTokensWrapper):
            between.add(_under(path, "token_adapter"))
        elif isinstance(module, BaseTunerLayer):
            between.add(_under(path, "base_layer"))
            found = _in_effect(module, configs)
            if found:
                counted |= set(found)
                scaling = getattr(module, "scaling", {})
                scaling = {a: scaling[a] for a in found if a in scaling}
                how = [found, scaling, module.disable_adapters, module.merged_adapters]
                applied[path.removeprefix(f"{at}.")] = how
                others = set(configs) - set(found)
                idle |= {f"{_under(path, kind)}.{a}" for kind in module.adapter_layer_names for a in others}
            else:
                idle |= {_under(path, name) for name in _own(module)}
        else:
            continue
        known = True
    counted = counted if known else set(configs)
    if not counted:
        # Beside the model, a tuner keeps what its adapters share.
        idle |= {n for n in model.state_dict() if at and not n.startswith(f"{at}.")}
        return None, between, idle
    return [{a: _quiet(configs[a].to_dict()) for a in counted}, applied], between, idle


def _own(layer: Any) -> list[str]:
    """What a layer of adapters has beside the layer that it adapts."""
    tensors = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return [name for name, _ in [*layer.named_children(), *tensors] if name != "base_layer"]


def _copy_of(path: str, adapter: str) -> str:
    return f"{_under(path, 'modules_to_save')}.{adapter}"


def _read_by(path: str, wrapper: Any) -> str:
    """Which of its modules a `modules_to_save` wrapper calls."""
    active = list(wrapper.active_adapters)
    off = wrapper.disable_adapters or not active or any(a not in wrapper.modules_to_save for a in active)
    return _under(path, "original_module") if off else _copy_of(path, active[0])


def _in_effect(layer: Any, configs: Mapping[str, Any]) -> list[str]:
    """The adapters that a layer's output depends on."""
    from peft.tuners.lora import LoraLayer

    # Merged ones count though they are disabled: to take them out of the weights leaves rounding errors.
    named = [*layer.merged_adapters, *([] if layer.disable_adapters else layer.active_adapters)]
    if not named or not isinstance(layer, LoraLayer):
        return list(configs) if named else []
    found = [a for a in dict.fromkeys(named) if a in layer.r and not _adds_nothing(layer, a)]
    # DoRA reads its own factors; of other variants, some read those of inactive adapters.
    strange = any(a in layer.lora_variant and a not in layer.lora_magnitude_vector for a in found)
    return list(configs) if strange else found


def _adds_nothing(layer: Any, adapter: str) -> bool:
    """Whether a LoRA's update B A is zero, as it is at first: B is, or A where the layer is an embedding."""
    if adapter in layer.lora_variant or adapter in layer.lora_magnitude_vector:
        return False  # DoRA is equal up to rounding only
    for first, second in ((layer.lora_A, layer.lora_B), (layer.lora_embedding_A, layer.lora_embedding_B)):
        if adapter in first:
            a, b = _factor(first[adapter]), _factor(second[adapter])
            if not all(t.isfinite().all() for t in a + b):
                return False  # 0 times infinity
            return not any(t.any() for t in b) or (len(b) == 1 and not any(t.any() for t in a))
    return False


def _factor(of: Any) -> list[torch.Tensor]:
    """The weight of a factor, and its bias where it has one."""
    return [of.detach()] if isinstance(of, torch.Tensor) else [p.detach() for p in of.parameters()]


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
        UserError: entries in the store are not what was written, or not what the model gives now; a log-prob or an
            entropy that the model gives is not finite.
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
            _refuse_not_finite(records[i], missing[i], scored)
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


def _refuse_not_finite(record: TokenRecord, completions: list[int], scored: Scored) -> None:
    """Raise UserError where a log-prob or an entropy is not: kept, it would spoil every run that finds it."""
    kinds: dict[str, Sequence[Array] | None] = {"log-prob": scored.token, "entropy": scored.entropy}
    for what, values in kinds.items():
        for c, value in zip(completions, values, strict=True) if values is not None else ():
            bad = np.flatnonzero(~np.isfinite(value))
            if len(bad):
                raise UserError(
                    f"the reference's {what} is {value[bad[0]]} on {len(bad)} of {len(value)} tokens of completion "
                    f"{c + 1} of record {record.id}, and is not stored; check the reference's weights, compute in "
                    "bf16 or float32 if this is fp16, or look at this record"
                )


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
    # A generator of its own: the caller's must not depend on whether entries were there.
    chosen = random.Random(hashlib.blake2b(b"".join(keys[i][c] for i, c in have)).digest())
    for i, c in chosen.sample(have, min(VERIFIED, len(have))):
        entry = store.get(keys[i][c], entropy)
        assert entry is not None
        scored = score(model, [_only(records[i], [c])], max_tokens=2**31, tokens=True)[0]
        _refuse_not_finite(records[i], [c], scored)
        assert scored.token is not None
        error = float(np.abs(scored.token[0] - entry[0]).max())
        if not error <= tolerance:
            raise UserError(
                f"the reference store {store.folder} disagrees with the model by {error:.2g} nats on a token of record "
                f"{records[i].id}: it was changed, or made by other versions of the libraries; delete it with "
                f"`prefopt reference prune {store.folder.name}`"
            )
