"""How TRL 1.16 names its cache of reference log-probs, by its own functions, and how the store does where that fails.

TRL's name is a hash of the prepared dataset's fingerprint and of the reference's tensors. Under the default truncation
mode the prepared dataset hashes all training arguments (a lambda holds them): any of them misses. Under `keep_end` it
hashes none, though `max_length` cuts the texts later. The tensors' hash knows neither config nor adapters' scale.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt.engine.reference.fingerprint import fingerprint
from prefopt.engine.reference.store import ReferenceStore
from prefopt.engine.reference.table import reference_table
from tests.engine import tiny

pytest.importorskip("trl", reason="the peer is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def trl_name(model: Any, folder: Path, **settings: Any) -> str:
    """The name of TRL's cache file for six pairs: what `DPOTrainer._precompute_ref_logps` computes."""
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.utils import hash_module

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")
    rows = [{"prompt": f"w{i} w4", "chosen": f" w{i + 9} w5 w6", "rejected": f" w{i + 2} w7"} for i in range(6)]
    args = DPOConfig(**({"output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False} | settings))
    prepared = DPOTrainer._prepare_dataset(
        SimpleNamespace(_tokenizer=tokenizer), Dataset.from_list(rows), tokenizer, args, "train"
    )
    return Hasher.hash((prepared._fingerprint, hash_module(model)))


def test_where_the_peer_misses_and_where_it_is_stale(tmp_path: Path) -> None:
    model = tiny.model("llama")
    first = trl_name(model, tmp_path)
    assert trl_name(model, tmp_path) == first
    for harmless in ({"beta": 0.3}, {"loss_type": "ipo"}, {"output_dir": str(tmp_path / "b")}, {"seed": 1}):
        assert trl_name(model, tmp_path, **harmless) != first  # computed again for nothing
    end = trl_name(model, tmp_path, truncation_mode="keep_end", max_length=5)
    assert trl_name(model, tmp_path, truncation_mode="keep_end", max_length=4) == end  # other texts, stale numbers
    assert trl_name(model, tmp_path, truncation_mode="keep_end", max_length=5, bf16=True) == end  # other precision
    other = tiny.model("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert trl_name(other, tmp_path) == first  # the same tensors in another model


def test_the_store_does_neither(tmp_path: Path) -> None:
    """The names of a store and of its entries: nothing of a method's settings is in them, all of the above is.

    `test_every_method_and_setting_reads_one_store` shows the hits with the trainer.
    """
    model = tiny.model("llama")
    data = tiny.records([(5, (4, 7)), (3, (2, 6))])
    reference_table(model, data, ReferenceStore(tmp_path, fingerprint(model)))
    for change in ("max_length", "autocast", "config"):
        changed, precision, texts = model, None, data
        if change == "max_length":
            texts = [replace(r, completions=tuple(c[:-1] for c in r.completions)) for r in data]
        elif change == "autocast":
            precision = "bf16"
        else:
            changed = tiny.model("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
            found = reference_table(changed, texts, ReferenceStore(tmp_path, fingerprint(changed, precision)))
        assert (found.hits, found.misses) == (0, 4)
        truth = [t.sum() for r in tiny.plain(changed, texts) for t in r]
        np.testing.assert_allclose(found.sum, truth, atol=1e-5 if precision is None else 0.5)
