"""Names a reference by all that changes its log-probs, and nothing else: weights, adapters, config, precision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch

from prefopt.engine.forward import unwrap

# Config entries that change no number of a causal language model in evaluation mode: its origin, how it is run, what it
# returns, how new weights are drawn, dropout, heads of other tasks, losses. `router_jitter_noise` is not among them:
# PhiMoE reads it in evaluation, too.
IGNORED = {
    "_name_or_path", "name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype", "architectures",
    "_attn_implementation", "_attn_implementation_internal", "attn_implementation", "bos_token_id", "eos_token_id",
    "pad_token_id", "return_dict", "output_hidden_states", "output_attentions", "base_model_name_or_path",
    "inference_mode", "revision", "task_type", "peft_version", "output_router_logits", "router_aux_loss_coef",
    "id2label", "label2id", "num_labels", "problem_type", "summary_type", "summary_use_proj", "summary_activation",
    "summary_proj_to_labels", "summary_first_dropout", "initializer_range", "initializer_factor", "init_std",
    "initializer_cutoff_factor", "w_init_variance_scale", "final_w_init_variance_scale", "rescale_prenorm_residual",
    "dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "embedding_dropout", "embed_dropout",
    "residual_dropout", "resid_dropout", "classifier_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob",
    "attn_pdrop", "embd_pdrop", "emb_pdrop", "resid_pdrop", "layerdrop", "lora_dropout",
}  # fmt: skip


def fingerprint(model: Any, precision: str | None = None) -> str:
    """The digest of all that a model's log-probs depend on, as 32 hexadecimal digits.

    Reads every weight once; call it before the model is sharded. Adapters that change nothing (disabled, inactive, or a
    LoRA whose update is zero) do not count, nor do their settings: the model has the name that it has without them.

    Args:
        model: a causal language model, wrapped or not.
        precision: "bf16" or "fp16" under autocast.
    """
    causal = unwrap(model)
    facts, between, idle = _adapters(model, causal)
    settings = [_settings(causal.config.to_dict()), facts, precision, torch.get_float32_matmul_precision()]
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16)
    seen: dict[int, str] = {}  # a tied weight is read once
    weights: set[str] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        parts = name.split(".")
        paths = list(accumulate(parts, _join))
        if idle.isdisjoint(paths):
            plain = ".".join(part for part, path in zip(parts, paths, strict=True) if path not in between)
            if id(tensor) not in seen:
                seen[id(tensor)] = _content(tensor)
            weights.add(f"{plain}={seen[id(tensor)]}")
    digest.update("\n".join(sorted(weights)).encode())  # sorted, because PEFT's wrappers change the order
    return digest.hexdigest()


def _content(value: Any) -> str:
    """The digest of a tensor; other entries of a state dict as text."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    digest = hashlib.blake2b(f"{value.dtype}:{tuple(value.shape)}:".encode(), digest_size=16)
    digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _settings(config: Any) -> Any:
    """A config without the entries that change no number, on every level; sets in a fixed order."""
    if isinstance(config, dict):
        return {str(k): _settings(v) for k, v in config.items() if k not in IGNORED}
    return sorted(map(str, config)) if isinstance(config, set) else config


def _adapters(model: Any, causal: Any) -> tuple[Any, set[str], set[str]]:
    """What PEFT adds to a model, by paths in `model`; whatever is not certain to change nothing counts.

    Returns:
        The settings of the adapters in effect, and how each layer applies them; None without any.
        Modules around or between those of the plain model, which names of weights leave out.
        Modules and tensors that the forward does not read.
    """
    at = next(name for name, module in model.named_modules() if module is causal)
    between = set(accumulate(at.split("."), _join))
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
            copies = {_join(path, "original_module")} | {_copy_of(path, a) for a in module.modules_to_save}
            read = _read_by(path, module)
            between |= {_join(path, "modules_to_save"), read}
            idle |= copies - {read}  # a copy counts as the module itself, to which a fresh one is equal
        elif isinstance(module, TrainableTokensWrapper):
            between.add(_join(path, "token_adapter"))
        elif isinstance(module, BaseTunerLayer):
            between.add(_join(path, "base_layer"))
            found = _in_effect(module, configs)
            if found:
                counted |= set(found)
                scaling = {a: s for a, s in getattr(module, "scaling", {}).items() if a in found}
                how = [found, scaling, module.disable_adapters, module.merged_adapters]
                applied[path.removeprefix(f"{at}.")] = how
                others = set(configs) - set(found)
                idle |= {f"{_join(path, kind)}.{a}" for kind in module.adapter_layer_names for a in others}
            else:
                idle |= {_join(path, name) for name in _added_by(module)}
        else:
            continue
        known = True
    counted = counted if known else set(configs)
    if not counted:
        # What the adapters of a tuner share stands beside the model.
        idle |= {n for n in model.state_dict() if at and not n.startswith(f"{at}.")}
        return None, between, idle
    return [{a: _settings(configs[a].to_dict()) for a in counted}, applied], between, idle


def _added_by(layer: Any) -> list[str]:
    """The names of what a layer of adapters has beside the layer that it adapts."""
    tensors = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return [name for name, _ in [*layer.named_children(), *tensors] if name != "base_layer"]


def _copy_of(path: str, adapter: str) -> str:
    return f"{_join(path, 'modules_to_save')}.{adapter}"


def _read_by(path: str, wrapper: Any) -> str:
    """The path of the module that a `modules_to_save` wrapper calls."""
    active = list(wrapper.active_adapters)
    off = wrapper.disable_adapters or not active or any(a not in wrapper.modules_to_save for a in active)
    return _join(path, "original_module") if off else _copy_of(path, active[0])


def _in_effect(layer: Any, configs: Mapping[str, Any]) -> list[str]:
    """The adapters that a layer's output depends on."""
    from peft.tuners.lora import LoraLayer

    # Merged adapters count even when disabled: taking them out of the weights leaves rounding errors.
    named = [*layer.merged_adapters, *([] if layer.disable_adapters else layer.active_adapters)]
    if not named or not isinstance(layer, LoraLayer):
        return list(configs) if named else []
    found = [a for a in dict.fromkeys(named) if a in layer.r and not _adds_nothing(layer, a)]
    # DoRA reads its own factors; some other variants read those of inactive adapters.
    unknown = any(a in layer.lora_variant and a not in layer.lora_magnitude_vector for a in found)
    return list(configs) if unknown else found


def _adds_nothing(layer: Any, adapter: str) -> bool:
    """Whether a LoRA's update B A is zero, as it is at first: B is, or A where the layer is an embedding."""
    if adapter in layer.lora_variant or adapter in layer.lora_magnitude_vector:
        return False  # DoRA is equal up to rounding only
    for first, second in ((layer.lora_A, layer.lora_B), (layer.lora_embedding_A, layer.lora_embedding_B)):
        if adapter in first:
            a, b = _factor(first[adapter]), _factor(second[adapter])
            if not all(t.isfinite().all() for t in a + b):
                return False  # 0 times infinity is not 0
            return not any(t.any() for t in b) or (len(b) == 1 and not any(t.any() for t in a))
    return False


def _factor(of: Any) -> list[torch.Tensor]:
    """The weight of a factor, and its bias if it has one."""
    return [of.detach()] if isinstance(of, torch.Tensor) else [p.detach() for p in of.parameters()]
