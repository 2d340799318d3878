"""Drawing the requests of sessions and chains: lengths that grow, and blocks that are found again.

Legend: N requests, S threads, L contexts (a request and those that grow from it), M listed blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.workload.lengths import Length
from moesim.workload.prefixes import MAX_BLOCKS, Prefixes, SharedPrefix
from moesim.workload.threads import NOBODY, Chains, Sessions, Step, Threads

# Divides into the blocks of vLLM (16 tokens), SGLang (1) and TensorRT-LLM (32): the finest that
# all three can find again.
BLOCK_TOKENS = 32
# Lengths are drawn for so many requests at a time.
_CHUNK = 1024
MAX_TOTAL_TOKENS = 1e12


class Drawn(NamedTuple):
    """The requests of all threads in order."""

    threads: Threads
    prompt_tokens_N: NDArray[np.int32]
    output_tokens_N: NDArray[np.int32]
    prefixes: Prefixes
    notes: tuple[str, ...]


class _Lengths:
    """(prompt, output, quantile of the shared text) of one request after another, by class."""

    def __init__(
        self,
        choices: Sequence[tuple[Length, Length]],
        most_output: int | None,
        rng: np.random.Generator,
    ) -> None:
        self.choices = choices
        self.most_output = most_output
        self.rng = rng
        self.at = _CHUNK
        self.cut = 0

    def next(self, of_class: int) -> tuple[int, int, float]:
        if self.at == _CHUNK:
            quantile_N3 = self.rng.random((_CHUNK, 3))
            self.tables = [
                (
                    prompt.tokens_at(quantile_N3[:, 0]).tolist(),
                    output.tokens_at(quantile_N3[:, 1]).tolist(),
                )
                for prompt, output in self.choices
            ]
            self.text = quantile_N3[:, 2].tolist()
            self.at = 0
        prompts, outputs = self.tables[of_class]
        prompt, output = prompts[self.at], outputs[self.at]
        text = self.text[self.at]
        self.at += 1
        if self.most_output is not None and output > self.most_output:
            self.cut += 1
            output = self.most_output
        return prompt, output, text


@dataclass
class _Requests:
    """What has been drawn so far; lists of one entry a request, or a context."""

    thread: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    before: list[tuple[int, ...]] = field(default_factory=list)
    delay_s: list[float] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    context: list[int] = field(default_factory=list)
    opening_tokens: list[int] = field(default_factory=list)  # of each context's first prompt
    text: list[float] = field(default_factory=list)  # quantile of each context's shared text


def draw_threads(
    spec: Sessions | Chains,
    class_S: Iterator[int],
    threads: int | None,
    requests: int | None,
    choices: Sequence[tuple[Length, Length]],
    most_output: int | None,
    shared: SharedPrefix | None,
    shape_rng: np.random.Generator,
    length_rng: np.random.Generator,
) -> Drawn:
    """So many `threads`, or so many that they have `requests` requests, the last one cut short.

    class_S: the class of each thread, without end; `choices` holds (prompt, output) of each class.
    Raises InputError for more than 10^12 tokens.
    """
    lengths = _Lengths(choices, most_output, length_rng)
    found = _Requests()
    number = 0
    total = 0
    while number < threads if threads is not None else len(found.thread) < (requests or 0):
        room = None if requests is None else requests - len(found.thread)
        total += _add_thread(found, spec, number, next(class_S), room, lengths, shape_rng)
        number += 1
        if total > MAX_TOTAL_TOKENS:
            raise InputError("workload.requests", "must bring at most 10^12 tokens", requests)
    notes = []
    if lengths.cut:
        notes.append(f"{lengths.cut} outputs cut to max_output_tokens ({most_output})")
    prompt_N, output_N = np.array(found.prompt, np.int64), np.array(found.output, np.int64)
    if prompt_N.max() >= 2**31:
        raise InputError("workload", "must not let a prompt grow to 2^31 tokens")
    return Drawn(
        _threads(found, "session" if isinstance(spec, Sessions) else "chain"),
        prompt_N.astype(np.int32),
        output_N.astype(np.int32),
        _blocks(found, prompt_N + output_N, shared),
        tuple(notes),
    )


def _add_thread(
    found: _Requests,
    spec: Sessions | Chains,
    number: int,
    of_class: int,
    room: int | None,
    lengths: _Lengths,
    rng: np.random.Generator,
) -> int:
    """Add one thread of at most `room` requests; its tokens.

    All its steps are drawn even where they are not used, so that the next thread is the same
    whatever the room.
    """
    first = len(found.thread)
    most = spec.max_context if isinstance(spec, Sessions) else None
    total = 0
    ended = False
    for turn, step in enumerate(spec.steps(rng)):
        new, output, text = lengths.next(of_class)
        if ended or (room is not None and turn >= room):
            continue
        prompt = _prompt(found, first, step, new)
        if most is not None and turn > 0 and prompt + output > most:
            ended = True
            continue
        total += prompt + output
        found.thread.append(number)
        found.turn.append(turn)
        found.before.append(tuple(first + i for i in step.waits_for))
        found.delay_s.append(step.delay_s)
        found.prompt.append(prompt)
        found.output.append(output)
        if step.grows_from == NOBODY:
            found.context.append(len(found.text))
            found.opening_tokens.append(prompt)
            found.text.append(text)
        else:
            found.context.append(found.context[first + step.grows_from])
    return total


def _prompt(found: _Requests, first: int, step: Step, new: int) -> int:
    """Tokens of a step's prompt: what it grows from, what it reads, and its new text."""
    tokens = new if step.added_tokens is None else step.added_tokens
    tokens += sum(found.output[first + i] for i in step.reads)
    if step.grows_from != NOBODY:
        i = first + step.grows_from
        tokens += found.prompt[i] + found.output[i]
    return tokens


def _threads(found: _Requests, kind: str) -> Threads:
    count = [len(each) for each in found.before]
    flat = [one for each in found.before for one in each]
    return Threads(
        thread_N=np.array(found.thread, np.int32),
        turn_N=np.array(found.turn, np.int32),
        before_start_N1=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        before_M=np.array(flat, np.int32),
        delay_s_N=np.array(found.delay_s, np.float64),
        kind="session" if kind == "session" else "chain",
    )


def _blocks(
    found: _Requests, whole_tokens_N: NDArray[np.int64], shared: SharedPrefix | None
) -> Prefixes:
    """The blocks that each prompt and its answer fill, which who grows from it begins with.

    The last output token is never computed on, so its block is offered only once a later turn has
    computed it.
    """
    context_N = np.array(found.context, np.int64)
    count_N = whole_tokens_N // BLOCK_TOKENS
    text_L, shared_L, text_ids = _texts(found, shared)
    longest_L = np.zeros(len(found.text), np.int64)
    np.maximum.at(longest_L, context_N, count_N)
    base_L = text_ids + np.cumsum(longest_L) - longest_L
    start_N1 = np.concatenate([[0], np.cumsum(count_N)])
    if start_N1[-1] > MAX_BLOCKS:
        rule = f"must list at most {MAX_BLOCKS} blocks of {BLOCK_TOKENS} tokens"
        raise InputError("workload.requests", rule, len(count_N))
    inside_M = np.arange(start_N1[-1]) - np.repeat(start_N1[:-1], count_N)
    context_M = np.repeat(context_N, count_N)
    ids_M = np.where(
        inside_M < shared_L[context_M], text_L[context_M] + inside_M, base_L[context_M] + inside_M
    )
    return Prefixes(start_N1, ids_M, BLOCK_TOKENS)


def _texts(
    found: _Requests, shared: SharedPrefix | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """(first block id of each context's shared text, blocks of it, ids taken by all texts)."""
    none_L = np.zeros(len(found.text), np.int64)
    if shared is None:
        return none_L, none_L, 0
    quantile_L = np.array(found.text)
    blocks = shared.tokens // BLOCK_TOKENS
    text_L = np.minimum(
        (quantile_L / shared.fraction * shared.prefixes).astype(np.int64), shared.prefixes - 1
    )
    has_L = np.minimum(np.array(found.opening_tokens, np.int64), shared.tokens) // BLOCK_TOKENS
    return (
        text_L * blocks,
        np.where(quantile_L < shared.fraction, has_L, 0),
        shared.prefixes * blocks,
    )
