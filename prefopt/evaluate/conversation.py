"""Chats with a model: in turns of its chat template, or by continuing plain text where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, TextStreamer, set_seed

from prefopt.data.data_config import DataConfig
from prefopt.data.images.image_places import asked_with
from prefopt.data.images.inputs import inputs_of
from prefopt.data.record import Message, RowError, Text
from prefopt.data.tokenize import Encoder
from prefopt.engine.forward import unwrap
from prefopt.engine.generation import end_tokens
from prefopt.engine.image_arguments import image_call
from prefopt.errors import UserError
from prefopt.evaluate.texts import Sampling


class Conversation:
    """A conversation with one model.

    A model with a chat template is asked in turns and remembers them; one without continues each text it is given.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        sampling: length, temperature and seed of answers.
        system: the text of the system turn, if there is one.
        written: how its prompts are written (`prefopt.data.data_config.FORMAT`).

    Raises:
        UserError: the template is unknown, or the model has no token that ends a text.
    """

    def __init__(
        self, model: Any, tokenizer: Any, sampling: Sampling, *, system: str | None = None,
        written: DataConfig | None = None,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.encoder = Encoder(tokenizer, written or DataConfig(path="chat"))
        self.in_turns = self.encoder.render.source is not None
        self.ends = end_tokens(model, tokenizer)
        self.images = inputs_of(unwrap(model))
        self.unwritten = None if self.images is None else self.images.reserved
        if not self.ends:
            raise UserError("neither the model nor its tokenizer has an end token (eos_token): it would never stop")
        if system is not None and not self.in_turns:
            raise UserError("this model has no chat template, so it has no system turn: leave the system text out")
        self.system = system
        self.turns: list[Message] = []
        self.forgotten = 0  # turns left out of the prompt because the model's context is full

    def reset(self) -> None:
        """Forget all turns but the system turn."""
        self.turns, self.forgotten = [], 0

    def ask(
        self, text: str, on_piece: Callable[[str], None] = lambda piece: None, *, images: Sequence[str] = ()
    ) -> str:
        """Answer `text` and add both to the turns; `on_piece` is called with each piece as it is written.

        `images` are files that the question is about, in its places `<image>` or before it.

        An answer that is interrupted (KeyboardInterrupt) is forgotten with its question.

        Raises:
            UserError: the text alone is longer than the model's context.
        """

        class Streamer(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if text:
                    on_piece(text)

        asked = asked_with(text, images)
        assert isinstance(asked, str)
        turns: list[Message] = [*self.turns, {"role": "user", "content": asked}]
        try:
            prompt, most = self._within_context(turns)
        except RowError as error:
            raise UserError(error.detail) from error
        ids, seen = self._inputs(prompt)
        draws = self.sampling.temperature > 0
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=most, do_sample=draws, eos_token_id=self.ends,
            pad_token_id=self.ends[0], suppress_tokens=self.unwritten,
            **({"temperature": self.sampling.temperature, "top_k": 0} if draws else {}),
        )  # fmt: skip
        set_seed(self.sampling.seed + len(self.turns))
        streamer = Streamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        with torch.inference_mode():
            out = self.model.eval().generate(
                ids, attention_mask=torch.ones_like(ids), **seen, generation_config=settings, streamer=streamer
            )
        answer: str = self.tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)
        if self.in_turns:
            self.turns = [*turns, {"role": "assistant", "content": answer}]
        return answer

    def _inputs(self, prompt: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """(1, L) tokens of a prompt, and what the model is given of its images."""
        if self.images is None:
            return torch.tensor([prompt], device=self.model.device), {}
        coded = np.array(prompt, np.int32)
        ids = torch.from_numpy(self.images.ids(coded).astype(np.int64))[None].to(self.model.device)
        return ids, image_call(self.images, [coded], ids, self.model)

    def _within_context(self, turns: list[Message]) -> tuple[list[int], int]:
        """The tokens of the prompt, and the number that its answer may have.

        The oldest turns are left out where they do not fit beside an answer of the wanted length, or of half the
        context.
        """
        wanted = self.sampling.max_new_tokens
        limit = getattr(self.model.config, "max_position_embeddings", None)
        self.forgotten = 0
        while True:
            prompt = self.encoder.prompt(self._prompt(turns[self.forgotten :]))
            if limit is None:
                return prompt, wanted
            last = self.forgotten + 1 == len(turns)
            if len(prompt) <= limit - (1 if last else min(wanted, limit // 2)):
                return prompt, min(wanted, limit - len(prompt))
            if last:
                raise UserError(f"{len(prompt)} tokens are more than the model's context of {limit}: shorten the text")
            self.forgotten += 2

    def _prompt(self, turns: list[Message]) -> Text:
        if not self.in_turns:
            return turns[-1]["content"]
        system: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return (*system, *turns)
