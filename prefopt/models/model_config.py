"""Defines the settings of the Hydra group `model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prefopt.common.option_limits import Limits, one_of

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(kw_only=True)
class ModelConfig:
    """The model of a run. The defaults of the group `model`."""

    LIMITS: ClassVar[Limits] = {"dtype": one_of(*DTYPES), "quantization": one_of("nf4", otherwise="null")}

    path: str  # a folder (of a model or an adapter), a hub id, `world`, `world/base`, or `package:NAME`
    revision: str | None = None  # of a hub id
    reference: str | None = None  # another model as reference; None: the model as it starts
    value_model: str | None = None  # a reward model that ppo's values start as; None: the model, with a head of zeros
    dtype: str = "float32"  # of the weights; bfloat16 rounds small learning rates away, prefer trainer.bf16=true
    trust_remote_code: bool = False  # runs code that the model's author wrote
    quantization: str | None = None  # nf4: frozen weights in 4 bits below an adapter (QLoRA); needs CUDA
