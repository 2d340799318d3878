"""Prompts of held-out text, as a file for `moesim calibrate capture`.

    python -m calibration.tiny_moe.prompts FILE.jsonl [--each 80]

The domains take turns, so that any part of the trace has all of them. A prompt starts somewhere in
a document that the model was not trained on, at the beginning of a line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from calibration.tiny_moe.corpus import DOMAINS, read_corpus, split
from moesim.files import replace_atomically

# More than the capture keeps (--prompt-tokens): a token is two to four letters.
LETTERS = 1200


def held_out_prompts(each: int) -> list[dict[str, str]]:
    """`each` prompts of every domain, in turns; the same ones whenever it runs."""
    rng = np.random.default_rng(0)
    corpus = read_corpus()
    prompts: dict[str, list[str]] = {}
    for name in DOMAINS:
        documents = [text for text in split(corpus[name])[1] if len(text) > LETTERS]
        prompts[name] = [
            _excerpt(documents[int(i)], rng) for i in rng.integers(0, len(documents), each)
        ]
    return [{"domain": name, "prompt": prompts[name][i]} for i in range(each) for name in DOMAINS]


def _excerpt(document: str, rng: np.random.Generator) -> str:
    first = int(rng.integers(0, len(document) - LETTERS + 1))
    line = document.rfind("\n", 0, first) + 1
    return document[line : line + LETTERS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--each", type=int, default=80)
    given = parser.parse_args()
    with replace_atomically(given.file) as path:
        lines = (json.dumps(row, ensure_ascii=False) for row in held_out_prompts(given.each))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
