"""The byte-level BPE vocabulary of the small model, and its text as token ids.

Legend: N tokens of a domain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.tiny_moe.corpus import split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 2048
END = "<|end|>"


def make_tokenizer(corpus: Mapping[str, list[str]], folder: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE learnt from equal shares of the domains' training text; kept in `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        made.train_from_iterator(_equal_shares(corpus), trainer)
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=made, eos_token=END, bos_token=END, pad_token=END, padding_side="left"
        )
        wrapped.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _equal_shares(corpus: Mapping[str, list[str]]) -> Iterable[str]:
    training = [split(documents)[0] for documents in corpus.values()]
    share = min(sum(map(len, documents)) for documents in training)
    for documents in training:
        left = share
        for text in documents:
            if left <= 0:
                break
            yield text[:left]
            left -= len(text)


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> NDArray[np.int64]:
    """All documents one after another, [N], each after an end-of-text token."""
    end = tokenizer.eos_token_id
    parts = [[end, *ids] for ids in tokenizer(documents, verbose=False)["input_ids"]]
    return np.concatenate([np.array(part, np.int64) for part in parts])
