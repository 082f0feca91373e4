"""The runs of `tests.golden`: their names, options and files, and the tiny model that all of them start from."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LOSSES = ("dpo", "ipo", "kto", "bco", "aot", "beta_dpo", "orpo", "simpo", "sft", "wpo", "tdpo2", "tr_dpo")
EACH_KIND = ("dpo", "kto", "bco", "aot", "sft", "tdpo2")  # plain, coupled, with state, of one side, of the vocabulary
UNPAIRED = ("kto", "bco")
HYPER_PARAMETERS = {"tr_dpo": ("loss.tau=2",)}  # so that the reference moves within a run
BASE = (
    "progress=quiet",
    "trainer.use_cpu=true",
    "batch.records=8",
    "trainer.max_steps=5",
    "trainer.learning_rate=5e-3",
    "evaluation.texts=0",
    "evaluation.kl_prompts=0",
    "data.eval_records=0",
)
LAYOUTS = ("tree", "padded")
WEIGHTS = {"full": (), "lora": ("peft=lora", "peft.r=4", "trainer.learning_rate=2e-2")}
MICRO_BATCHES = {"one": ("batch.max_tokens=4096",), "several": ("batch.max_tokens=220",)}
HELD_OUT = ("data.eval_records=6", "trainer.eval_strategy=steps", "trainer.eval_steps=2")


@dataclass(frozen=True)
class Case:
    """One run: `prefopt train` with these options on the data file of that name.

    `processes`: forked ones that train together. `launcher`: they are started by torchrun instead.
    `resume_at`: the run is a resume from the checkpoint that a run before it left at this step.
    """

    options: tuple[str, ...]
    data: str = "pairs"
    processes: int = 1
    launcher: bool = False
    resume_at: int = 0


def _of(
    loss: str, *options: str, data: str = "", processes: int = 1, launcher: bool = False, resume_at: int = 0
) -> Case:
    """A case of one loss; a later option replaces an earlier one of its name."""
    merged = {o.split("=")[0]: o for o in (f"loss={loss}", *BASE, *HYPER_PARAMETERS.get(loss, ()), *options)}
    data = data or ("unpaired" if loss in UNPAIRED else "pairs")
    return Case(tuple(merged.values()), data, processes, launcher, resume_at)


def _one_process() -> dict[str, Case]:
    """Every loss, layout, kind of weights, and one or several micro-batches a step."""
    return {
        f"{loss}/{layout}/{weights}/{micro}": _of(
            loss, f"batch.layout={layout}", *WEIGHTS[weights], *MICRO_BATCHES[micro]
        )
        for loss, layout, weights, micro in itertools.product(LOSSES, LAYOUTS, WEIGHTS, MICRO_BATCHES)
    }


def _two_processes() -> dict[str, Case]:
    """DDP and FSDP2 with all weights and LoRA: the losses of `EACH_KIND` in every combination, others in two."""
    cases = {}
    for loss, shards, weights in itertools.product(LOSSES, ("ddp", "fsdp"), WEIGHTS):
        across = (shards == "fsdp") == (weights == "lora")  # ddp/full, fsdp/lora
        if (loss, shards) == ("tr_dpo", "fsdp") or (loss not in EACH_KIND and across == (len(loss) % 2 == 0)):
            continue
        options = [f"batch.layout={'padded' if weights == 'lora' else 'tree'}", *WEIGHTS[weights]]
        options += MICRO_BATCHES["several" if across else "one"]
        options += ["trainer.fsdp=true"] if shards == "fsdp" else []
        cases[f"{loss}/{shards}/{weights}"] = _of(loss, *options, processes=2)
    return cases


def _settings() -> dict[str, Case]:
    """One case for each setting of the trainer, the model and the data that can change a number."""
    several = MICRO_BATCHES["several"]
    lora = WEIGHTS["lora"]
    texts = ("evaluation.texts=2", "evaluation.kl_prompts=4", "evaluation.max_new_tokens=8")
    best = ("trainer.save_strategy=steps", "trainer.save_steps=2", "trainer.load_best_model_at_end=true")
    schedule = ("trainer.lr_scheduler_type=linear", "trainer.warmup_steps=2", "trainer.weight_decay=0.1")
    return {
        "clipping/tight": _of("dpo", "trainer.max_grad_norm=0.05", *several),
        "clipping/none": _of("dpo", "trainer.max_grad_norm=0", *several),
        "schedule/cosine": _of("dpo", "trainer.warmup_steps=2", "trainer.weight_decay=0.1", "trainer.max_steps=6"),
        "schedule/linear": _of("simpo", *schedule, "trainer.max_steps=6"),
        "schedule/constant": _of("dpo", "trainer.lr_scheduler_type=constant", "trainer.adam_beta2=0.9"),
        "optim/sgd": _of("dpo", "trainer.optim=sgd", "trainer.learning_rate=0.1"),
        "optim/adafactor": _of("orpo", "trainer.optim=adafactor"),
        "epochs": _of("kto", "trainer.max_steps=-1", "trainer.num_train_epochs=2", "batch.records=18", *several),
        "logging": _of("dpo", "trainer.logging_steps=2", *several),
        "seed": _of("dpo", "seed=7", *lora),
        "data_seed": _of("dpo", "trainer.data_seed=7"),
        "workers": _of("kto", "trainer.dataloader_num_workers=1", *several),
        "recompute": _of("dpo", "trainer.activation_checkpointing=true", *several),
        "bf16/dpo": _of("dpo", "trainer.bf16=true", *several),
        "bf16/orpo": _of("orpo", "trainer.bf16=true", *several),
        "bf16/aot/lora": _of("aot", "trainer.bf16=true", *lora, *several),
        "bf16/ddp": _of("dpo", "trainer.bf16=true", processes=2),
        "dtype/float64": _of("dpo", "model.dtype=float64", *several),
        "dtype/bfloat16": _of("dpo", "model.dtype=bfloat16"),
        "dora": _of("dpo", "peft=dora", "peft.r=4", *several),
        "reference": _of("dpo", "model.reference=OTHER_MODEL", *several),
        "reference/tdpo2": _of("tdpo2", "model.reference=OTHER_MODEL", *several),
        "held_out/dpo": _of("dpo", *HELD_OUT, *texts, *several),
        "held_out/kto": _of("kto", *HELD_OUT, *several),
        "held_out/sft": _of("sft", *HELD_OUT),
        "held_out/ddp": _of("aot", *HELD_OUT, *several, processes=2),
        "held_out/fsdp": _of("dpo", *HELD_OUT, *texts, "trainer.fsdp=true", processes=2),
        "held_out/best": _of("dpo", *HELD_OUT, *best, "trainer.learning_rate=5e-2"),
        "lists/plackett_luce": _of("plackett_luce", *several, data="lists"),
        "lists/info_nca": _of("info_nca", *several, data="lists"),
        "lists/li_po": _of("li_po", *several, data="lists"),
        "lists/li_po/ddp": _of("li_po", *several, data="lists", processes=2),
        "lists/as_pairs": _of("dpo", "data.pairs_from=all", data="lists"),
        "ties/split": _of("dpo", "data.ties=split", *several, data="judged"),
        "ties/split/ddp": _of("bco_pair_zero", "data.ties=split", *several, data="judged", processes=2),
        "kto/weights": _of("kto", "loss.desirable_weight=1.3", "loss.undesirable_weight=0.7", *several),
        "kto/ties_split": _of("kto", "data.ties=split", *several, data="judged"),
        "mix": _of("mix", *several),
        "mix/lora": _of("mix", "loss.terms={dpo:0.5,beta_dpo:0.5}", *lora),
        "mix/ddp": _of("mix", *several, processes=2),
        "csft": _of("csft", *several, data="unpaired"),
        "aot_unpaired": _of("aot_unpaired", *several, data="unpaired"),
        "stages": _of("dpo", "experiment=sft_then_dpo", "stages.sft.trainer.max_steps=3"),
        "resume/dpo": _of("dpo", *several, resume_at=2),
        "resume/bco/lora": _of("bco", *lora, *several, resume_at=3),
        "resume/tr_dpo": _of("tr_dpo", resume_at=3),
        "resume/beta_dpo/ddp": _of("beta_dpo", *several, processes=2, resume_at=2),
        "resume/dpo/fsdp": _of("dpo", "trainer.fsdp=true", processes=2, resume_at=2),
        "torchrun/dpo": _of("dpo", *several, processes=2, launcher=True),
    }


CASES: dict[str, Case] = _one_process() | _two_processes() | _settings()

# ---- files

WORDS = ("a", "red", "fox", "ran", "over", "the", "cold", "hill", "and", "saw", "3", "old", "boats", "near", "noon")


def write_files(folder: Path) -> None:
    """Two tiny models with a byte-level tokenizer, and one data file of each shape."""
    for name, seed in (("model", 0), ("other_model", 1)):
        torch.manual_seed(seed)
        tokenizer = _tokenizer()
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.25,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    draw = random.Random(0)
    prompts: list[str] = []
    for i in range(44):  # every third has the prompt of the one before
        prompts.append(prompts[-1] if i % 3 == 2 else _text(draw, 2, 5))
    rows: dict[str, list[dict[str, object]]] = {"pairs": [], "unpaired": [], "lists": [], "judged": []}
    for i, prompt in enumerate(prompts):
        answers = [f"{_text(draw, 1, 6)} {i}{letter}" for letter in "abcd"]
        rows["pairs"].append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
        rows["unpaired"].append({"prompt": prompt, "completion": answers[0], "label": i % 5 < 2})
        size = 2 + i % 3
        rows["lists"].append({"prompt": prompt, "completions": answers[:size], "scores": [0.9, 0.4, 0.6, 0.1][:size]})
        winner = ("a", "b", "tie")[i % 3]
        rows["judged"].append({"prompt": prompt, "response_a": answers[0], "response_b": answers[1], "winner": winner})
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _text(draw: random.Random, fewest: int, most: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(fewest, most)))


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte: nothing is trained, so it is the same with any version of tokenizers."""
    tokens = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")
