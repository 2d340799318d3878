"""Prompts as padded token ids: text, chats through the model's template, or ids as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from calibration.capture.loading import Loaded
from calibration.capture.prompts import Prompt
from moesim.errors import InputError


class Encoder:
    """Turns prompts into the inputs of `generate`, padded on the left (encoders: on the right)."""

    def __init__(
        self, loaded: Loaded, most_tokens: int | None, chat: bool, decoded: int = 0
    ) -> None:
        self.loaded = loaded
        self.most_tokens = most_tokens
        self.chat = chat
        self.decoded = decoded  # tokens computed after the prompt, which have to fit too
        config = loaded.model.config
        text = config.get_text_config(decoder=True)
        self.vocabulary = int(text.vocab_size)
        self.context = getattr(text, "max_position_embeddings", None)
        known = (
            getattr(loaded.tokenizer, "pad_token_id", None),
            getattr(text, "pad_token_id", None),
            getattr(loaded.tokenizer, "eos_token_id", None),
        )
        self.pad = next((each for each in known if isinstance(each, int)), 0)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse a prompt that cannot be encoded, before the model has run for hours."""
        for prompt in prompts:
            self._tokens(prompt)

    def encode(self, prompts: Sequence[Prompt]) -> tuple[dict[str, torch.Tensor], list[int]]:
        """(inputs, tokens of each prompt); inputs are ids and mask [B, columns], and `pad`."""
        rows = [self._tokens(prompt) for prompt in prompts]
        lengths = [len(row) for row in rows]
        columns = max(lengths)
        ids = torch.full((len(rows), columns), self.pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for b, row in enumerate(rows):
            place = slice(0, len(row)) if self.loaded.encoder_decoder else slice(-len(row), None)
            ids[b, place] = torch.tensor(row)
            mask[b, place] = 1
        device = self.loaded.model.device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        return {**inputs, "pad": torch.tensor(self.pad)}, lengths

    def _tokens(self, prompt: Prompt) -> list[int]:
        content = prompt.content
        if isinstance(content, tuple) and isinstance(content[0], int):
            tokens = [int(token) for token in content]
        else:
            tokens = self._tokenise(prompt)
        tokens = tokens[: self.most_tokens]
        if not tokens:
            raise InputError(prompt.where, "must have at least one token")
        if max(tokens) >= self.vocabulary:
            rule = f"must have tokens below the model's {self.vocabulary}"
            raise InputError(prompt.where, rule, max(tokens))
        length = len(tokens) + self.decoded
        if self.context is not None and length > self.context and not self.loaded.encoder_decoder:
            rule = f"must fit in the model's context of {self.context} tokens with its output"
            raise InputError(prompt.where, rule, length, "--prompt-tokens cuts prompts")
        return tokens

    def _tokenise(self, prompt: Prompt) -> list[int]:
        tokenizer: Any = self.loaded.tokenizer
        if tokenizer is None:
            raise InputError(
                prompt.where, f"must be token ids: {self.loaded.name} comes without a tokenizer"
            )
        content = prompt.content
        if isinstance(content, str) and not self.chat:
            return list(tokenizer(content, verbose=False)["input_ids"])
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        try:
            text = tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program of the model's author
            rule = f"cannot be put in the model's chat template: {str(error)[:200]}"
            raise InputError(prompt.where, rule) from None
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
