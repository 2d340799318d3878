"""Train the small model; interrupted, it goes on where its last checkpoint was.

    python -m calibration.tiny_moe.train FOLDER [--steps 600] [--threads 2]

FOLDER gets the model and tokenizer as Hugging Face files, `log.csv` (losses in nats per token,
seconds of processor time) and `checkpoint.pt`, written when it ends or is stopped with Ctrl-C or
SIGTERM. Every step draws the same windows whenever it runs: the seed is the step's number.

Legend: B windows, N tokens of a domain.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen3MoeForCausalLM
from transformers.utils import logging

from calibration.tiny_moe.corpus import read_corpus, split
from calibration.tiny_moe.model import balance_loss, make_model
from calibration.tiny_moe.tokens import encode, make_tokenizer

WINDOW, WINDOWS = 256, 8
HELD_OUT_WINDOWS = 12  # of each domain
RATE, WARM_UP, DECAY = 2e-3, 50, 0.25  # learning rate; steps; share of the steps that it falls over
BALANCE = 0.01
CHECK_EVERY = 50

Texts = Mapping[str, NDArray[np.int64]]


def learning_rate(step: int, steps: int) -> float:
    """Rises over the first steps, stays, and falls to zero over the last quarter."""
    left = (steps - step) / max(1.0, DECAY * steps)
    return RATE * min(1.0, (step + 1) / WARM_UP, left)


def windows(texts: Texts, step: int) -> Tensor:
    """Training windows of a step, [B, WINDOW]: as many of each domain."""
    rng = np.random.default_rng(step)
    names = list(texts)
    rows = []
    for b in range(WINDOWS):
        tokens_N = texts[names[b % len(names)]]
        first = int(rng.integers(0, len(tokens_N) - WINDOW))
        rows.append(tokens_N[first : first + WINDOW])
    return torch.from_numpy(np.stack(rows))


def held_out_losses(model: Qwen3MoeForCausalLM, texts: Texts) -> dict[str, float]:
    """Mean loss of each domain in nats per token, over windows spread evenly over its text."""
    losses = {}
    model.eval()
    with torch.no_grad():
        for name, tokens_N in texts.items():
            first = np.linspace(0, len(tokens_N) - WINDOW - 1, HELD_OUT_WINDOWS).astype(int)
            rows = torch.from_numpy(np.stack([tokens_N[i : i + WINDOW] for i in first]))
            losses[name] = float(model(input_ids=rows, labels=rows).loss)
    model.train()
    return losses


def unigram_losses(training: Texts, held_out: Texts, vocabulary: int) -> dict[str, float]:
    """What one distribution over tokens reaches: that of all domains alike, one count added."""
    mixed = np.zeros(vocabulary)
    for tokens_N in training.values():
        counts = np.bincount(tokens_N, minlength=vocabulary) + 1.0
        mixed += counts / counts.sum() / len(training)
    return {name: float(-np.log(mixed[tokens_N]).mean()) for name, tokens_N in held_out.items()}


def train(folder: Path, steps: int, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    folder.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus()
    tokenizer = make_tokenizer(corpus, folder)
    parts = {name: split(documents) for name, documents in corpus.items()}
    training = {name: encode(tokenizer, part[0]) for name, part in parts.items()}
    held_out = {name: encode(tokenizer, part[1]) for name, part in parts.items()}
    model = make_model(len(tokenizer), tokenizer.eos_token_id)
    model.set_experts_implementation("grouped_mm")
    optimiser = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.1)
    first, seconds = _resume(folder, model, optimiser)
    if not first:
        tokens = {name: len(tokens_N) for name, tokens_N in training.items()}
        print(f"training tokens: {tokens}")
        _log(folder, ["step", "tokens", "seconds", "loss", "balance", *corpus])
        unigram = unigram_losses(training, held_out, len(tokenizer))
        _log(folder, ["unigram", "", "", "", "", *(f"{unigram[name]:.4f}" for name in corpus)])
    begun, done = time.process_time() - seconds, first
    try:
        for step in range(first, steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps)
            loss, balance = _step(model, windows(training, step))
            optimiser.step()
            optimiser.zero_grad()
            done = step + 1
            if done % CHECK_EVERY == 0 or done in (1, steps):
                losses = held_out_losses(model, held_out)
                row = [done, done * WINDOW * WINDOWS, f"{time.process_time() - begun:.0f}"]
                row += [f"{loss:.4f}", f"{balance:.4f}"]
                _log(folder, [*row, *(f"{losses[name]:.4f}" for name in corpus)])
    finally:
        _save(folder, model, optimiser, done, time.process_time() - begun)
    model.save_pretrained(folder)


def _step(model: Qwen3MoeForCausalLM, rows: Tensor) -> tuple[float, float]:
    """(loss, balance loss) of these windows; gradients are left in the parameters."""
    told = model(input_ids=rows, output_router_logits=True)
    loss = torch.nn.functional.cross_entropy(
        told.logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten()
    )
    balance = balance_loss(told.router_logits)
    (loss + BALANCE * balance).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return float(loss.detach()), float(balance.detach())


def _log(folder: Path, row: list[object]) -> None:
    print(*row, flush=True)
    with (folder / "log.csv").open("a", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(row)


def _save(
    folder: Path,
    model: Qwen3MoeForCausalLM,
    optimiser: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> None:
    temporary = folder / "checkpoint.tmp"
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    torch.save({**state, "step": step, "seconds": seconds}, temporary)
    os.replace(temporary, folder / "checkpoint.pt")


def _resume(
    folder: Path, model: Qwen3MoeForCausalLM, optimiser: torch.optim.Optimizer
) -> tuple[int, float]:
    """(steps done, seconds spent) of the last checkpoint, which is loaded."""
    path = folder / "checkpoint.pt"
    if not path.is_file():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"]), float(state["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    train(given.folder, given.steps, given.threads)


if __name__ == "__main__":
    main()
