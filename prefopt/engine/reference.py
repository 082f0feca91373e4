"""The reference's log-probs, computed once and kept: per token, content-addressed, shared by every method and run.

A store is a folder named after everything that changes the numbers and nothing else: the weights (adapters included),
the parts of the model's config that its forward reads, and the precision of the computation. Entries are keyed by the
token ids of prompt and completion, so pairs, lists and unpaired views of the same texts find the same entries, and so
do other losses, seeds, orders and length limits. Parts are written as whole folders by a rename, by any number of
processes; a later run computes only what is missing, and checks a few entries that it reuses.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefopt.data.tokens import TokenRecord
from prefopt.engine.forward import unwrap
from prefopt.engine.gates import TOLERANCE
from prefopt.engine.scoring import Scored, score
from prefopt.errors import UserError

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Key = bytes  # 16 bytes

# Tokens of one part: how much is lost at most when a build is killed.
PART_TOKENS = 200_000
# Entries recomputed when a store is reused.
VERIFIED = 4
# Config entries that no forward reads.
NOISE = {"_name_or_path", "name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype", "architectures",
         "_attn_implementation", "_attn_implementation_internal", "attn_implementation", "bos_token_id",
         "eos_token_id", "pad_token_id", "return_dict", "output_hidden_states", "output_attentions"}  # fmt: skip


def fingerprint(model: Any, precision: str | None = None) -> str:
    """A hash of all that a model's log-probs depend on: weights, config, precision ("bf16" under autocast).

    Reads every weight once. Call it before the model is sharded.
    """
    digest = hashlib.blake2b(digest_size=16)
    config = {k: v for k, v in unwrap(model).config.to_dict().items() if k not in NOISE}
    adapters = sorted(getattr(model, "active_adapters", [])) if hasattr(model, "peft_config") else []
    digest.update(json.dumps([config, adapters, precision], sort_keys=True, default=str).encode())
    seen: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:  # a tied weight
            digest.update(f"{name}={seen[id(tensor)]}".encode())
            continue
        seen[id(tensor)] = name
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def entry_key(prompt: Array, completion: Array) -> Key:
    """The name of an entry: a hash of its token ids."""
    digest = hashlib.blake2b(len(prompt).to_bytes(8, "little"), digest_size=16)
    digest.update(prompt.astype(np.int32).tobytes())
    digest.update(completion.astype(np.int32).tobytes())
    return digest.digest()


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


class ReferenceStore:
    """The entries of one reference, in one folder.

    Args:
        root: folder that holds the stores of all references.
        name: the reference's `fingerprint`.
        about: facts for people, kept beside the entries.
    """

    def __init__(self, root: Path, name: str, about: dict[str, Any] | None = None) -> None:
        self.folder = root / name
        self.about = about or {}
        self._parts: list[tuple[Path, Array, Array, Array | None]] = []
        self._index: dict[Key, tuple[int, int]] = {}  # key -> part, entry
        self._seen: set[str] = set()
        self.broken: list[str] = []
        self._read()

    def _read(self) -> None:
        """Take in parts that have appeared since the last look."""
        for part in sorted(self.folder.glob("part-*")):
            if part.name in self._seen:
                continue
            self._seen.add(part.name)
            try:
                keys, offsets, token, entropy = _open_part(part)
            except (OSError, ValueError, EOFError) as error:
                # Whatever happened to it, its entries are computed again.
                logger.warning("ignoring broken part %s of the reference store: %s", part, error)
                self.broken.append(str(part))
                continue
            self._parts.append((part, offsets, token, entropy))
            for entry, key in enumerate(keys):
                old = self._index.get(key.tobytes())
                if old is None or (entropy is not None and self._parts[old[0]][3] is None):
                    self._index[key.tobytes()] = (len(self._parts) - 1, entry)

    def __len__(self) -> int:
        return len(self._index)

    def get(self, key: Key, entropy: bool = False) -> tuple[Array, Array | None] | None:
        """Per-token log-probs (and entropies) of an entry, or None where the store lacks them."""
        if key not in self._index:
            return None
        part, entry = self._index[key]
        _, offsets, token, ent = self._parts[part]
        if entropy and ent is None:
            return None
        a, b = int(offsets[entry]), int(offsets[entry + 1])
        return token[a:b], ent[a:b] if ent is not None else None

    def add(self, entries: dict[Key, tuple[Array, Array | None]]) -> None:
        """Write entries as one part, whole or not at all."""
        if not entries:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "about.json").exists():
            _write_atomically(self.folder / "about.json", json.dumps(self.about, indent=1, default=str))
        tmp = self.folder / f"tmp-{uuid.uuid4().hex}"
        tmp.mkdir()
        try:
            lengths = [len(t) for t, _ in entries.values()]
            np.save(tmp / "keys.npy", np.frombuffer(b"".join(entries), np.uint8).reshape(-1, 16))
            np.save(tmp / "offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
            np.save(tmp / "token.npy", np.concatenate([t for t, _ in entries.values()]).astype(np.float32))
            if all(e is not None for _, e in entries.values()):
                np.save(tmp / "entropy.npy", np.concatenate([e for _, e in entries.values()]).astype(np.float32))
            tmp.rename(self.folder / f"part-{uuid.uuid4().hex[:16]}")
        except OSError as error:
            raise UserError(f"cannot write the reference store {self.folder}: {error}; free some space, or set "
                            "reference.folder to another disk") from error  # fmt: skip
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
        self._read()

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file())


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
        UserError: entries in the store are not what the model gives now.
    """
    keys = [[entry_key(r.prompt, c) for c in r.completions] for r in records]
    missing = _missing(records, keys, store, entropy)
    barrier()  # nobody adds before everybody has looked: all must share out the same list
    hits = sum(map(len, keys)) - sum(len(m) for m in missing.values())
    if hits:
        _verify(model, records, keys, store, entropy)
    progress(len(records) - len(missing))
    rank, count = process
    mine = [i for n, i in enumerate(missing) if n % count == rank]
    for batch in _parts_of(records, missing, mine):
        todo = [_only(records[i], missing[i]) for i in batch]
        found = score(model, todo, max_tokens=max_tokens, tokens=True, entropy=entropy, progress=progress)
        store.add({k: v for i, s in zip(batch, found, strict=True) for k, v in _entries(keys[i], missing[i], s)})
    barrier()
    store._read()
    rows = [store.get(k, entropy) for record in keys for k in record]
    if any(r is None for r in rows):
        raise UserError(f"the reference store {store.folder} lost entries while it was built: is another process "
                        "pruning it? Start again")  # fmt: skip
    tokens = [r[0] for r in rows if r is not None]
    return ReferenceTable(
        sum=np.array([t.sum(dtype=np.float64) for t in tokens], np.float32),
        offsets=np.cumsum([0, *map(len, keys)], dtype=np.int64),
        hits=hits,
        misses=sum(len(m) for m in missing.values()),
        _token=tokens,
        _entropy=[r[1] for r in rows if r is not None and r[1] is not None] if entropy else None,
    )


def _missing(
    records: Sequence[TokenRecord], keys: list[list[Key]], store: ReferenceStore, entropy: bool
) -> dict[int, list[int]]:
    """Record -> its completions that the store lacks, each text once."""
    missing: dict[int, list[int]] = {}
    asked: set[Key] = set()
    for i, record in enumerate(keys):
        for c, key in enumerate(record):
            if key not in asked and store.get(key, entropy) is None:
                asked.add(key)
                missing.setdefault(i, []).append(c)
    return missing


def _parts_of(records: Sequence[TokenRecord], missing: dict[int, list[int]], mine: list[int]) -> list[list[int]]:
    """Cut the work into parts: what a kill loses at most."""
    parts: list[list[int]] = []
    room = 0
    for i in mine:
        size = sum(len(records[i].completions[c]) for c in missing[i])
        if not parts or size > room:
            parts.append([])
            room = PART_TOKENS
        parts[-1].append(i)
        room -= size
    return parts


def _only(record: TokenRecord, completions: list[int]) -> TokenRecord:
    kept = tuple(record.completions[c] for c in completions)
    return TokenRecord(id=record.id, kind=record.kind, prompt=record.prompt, completions=kept)


def _entries(keys: list[Key], completions: list[int], scored: Scored) -> list[tuple[Key, tuple[Array, Array | None]]]:
    assert scored.token is not None
    return [
        (keys[c], (scored.token[n], scored.entropy[n] if scored.entropy is not None else None))
        for n, c in enumerate(completions)
    ]


def _verify(
    model: Any, records: Sequence[TokenRecord], keys: list[list[Key]], store: ReferenceStore, entropy: bool
) -> None:
    """Recompute a few entries that are about to be reused."""
    have = [(i, c) for i, r in enumerate(keys) for c, k in enumerate(r) if store.get(k, entropy) is not None]
    rng = np.random.default_rng(0)
    tolerance = TOLERANCE.get(next(model.parameters()).dtype, 0.25)
    for n in rng.choice(len(have), min(VERIFIED, len(have)), replace=False):
        i, c = have[n]
        entry = store.get(keys[i][c], entropy)
        assert entry is not None
        scored = score(model, [_only(records[i], [c])], max_tokens=2**31, tokens=True)[0]
        assert scored.token is not None
        error = float(np.abs(scored.token[0] - entry[0]).max())
        if not error <= tolerance:
            raise UserError(
                f"the reference store {store.folder} disagrees with the model by {error:.2g} nats on a token of "
                f"record {records[i].id}: it is damaged; delete it with `prefopt reference prune {store.folder.name}`"
            )


def _open_part(part: Path) -> tuple[Array, Array, Array, Array | None]:
    keys = np.load(part / "keys.npy", allow_pickle=False)
    offsets = np.load(part / "offsets.npy", allow_pickle=False)
    token = np.load(part / "token.npy", mmap_mode="r", allow_pickle=False)
    has_entropy = (part / "entropy.npy").exists()
    entropy = np.load(part / "entropy.npy", mmap_mode="r", allow_pickle=False) if has_entropy else None
    if (
        keys.shape != (len(offsets) - 1, 16)
        or offsets[-1] != len(token)
        or (entropy is not None and len(entropy) != len(token))
    ):
        raise ValueError("its arrays do not fit together")
    return keys, offsets, token, entropy


def _write_atomically(path: Path, text: str) -> None:
    tmp = path.with_name(f"tmp-{uuid.uuid4().hex}")
    tmp.write_text(text)
    tmp.rename(path)


def stores(root: Path) -> list[dict[str, Any]]:
    """What is kept under `root`: name, entries, tokens, bytes, age in days, and the facts for people."""
    found = []
    for folder in sorted(p for p in root.glob("*") if p.is_dir()):
        store = ReferenceStore(root, folder.name)
        about_file = folder / "about.json"
        found.append(
            {
                "name": folder.name,
                "entries": len(store),
                "tokens": sum(len(p[2]) for p in store._parts),
                "bytes": store.size_bytes,
                "age_days": round((time.time() - folder.stat().st_mtime) / 86400, 2),
                "broken_parts": store.broken,
                "about": json.loads(about_file.read_text()) if about_file.exists() else {},
            }
        )
    return found
