"""Prompts to run a model on: JSONL with a domain each, or text with a prompt per line.

A JSONL line is an object with one of `prompt` or `text` (a string), `messages` (a chat, for the
model's template) or `tokens` (ids, for models without a tokenizer), and a domain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.errors import InputError
from moesim.files import existing_file

MAX_FILE_BYTES = 2 * 1024**3
MAX_PROMPTS = 10**6
MAX_DOMAINS = 65_536
KINDS = ("prompt", "text", "messages", "tokens")


@dataclass(frozen=True)
class Prompt:
    """One prompt: text, a chat's messages, or token ids; `where` says which line of which file."""

    where: str
    domain: str
    content: str | tuple[dict[str, str], ...] | tuple[int, ...]


@dataclass(frozen=True)
class Prompts:
    """All prompts in order, their domains in order of appearance, and the SHA-256 of the files."""

    prompts: tuple[Prompt, ...]
    domains: tuple[str, ...]
    sha256: str


def read_prompts(
    paths: Sequence[Path], domain: str | None, label: str = "domain", limit: int | None = None
) -> Prompts:
    """The prompts of all files, the first `limit` of each file.

    A prompt's domain is its line's `label`, else `domain`, else the file's name. Raises InputError
    with file and line.
    """
    prompts: list[Prompt] = []
    digest = hashlib.sha256()
    for path in paths:
        source = existing_file(path, MAX_FILE_BYTES)
        before = len(prompts)
        for number, line in _lines(source):
            digest.update(line.encode())
            if limit is None or len(prompts) - before < limit:
                where, named = f"{path}:{number}", domain or path.stem
                if path.suffix.lower() == ".jsonl":
                    prompts.append(_parse(where, line, named, label))
                else:
                    prompts.append(Prompt(where, named, line))
            if len(prompts) > MAX_PROMPTS:
                raise InputError(str(path), f"must have at most {MAX_PROMPTS} prompts in all")
        if len(prompts) == before:
            raise InputError(str(path), "must have at least one prompt, a line each")
    domains = tuple(dict.fromkeys(prompt.domain for prompt in prompts))
    if len(domains) > MAX_DOMAINS:
        raise InputError("prompts", f"must have at most {MAX_DOMAINS} domains", len(domains))
    return Prompts(tuple(prompts), domains, digest.hexdigest())


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"cannot be read as text: {error}") from None


def _parse(where: str, line: str, domain: str, label: str) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"must be a JSON object: {str(error)[:100]}") from None
    if not isinstance(row, dict):
        raise InputError(where, "must be a JSON object")
    domain = row.get(label, domain)
    if not isinstance(domain, str) or not domain or not domain.isprintable():
        raise InputError(f"{where}.{label}", "must be printable text", domain)
    kinds = [kind for kind in KINDS if kind in row]
    if len(kinds) != 1:
        raise InputError(where, f"must have one of {', '.join(KINDS)}", sorted(row)[:8])
    return Prompt(where, domain, _content(f"{where}.{kinds[0]}", kinds[0], row[kinds[0]]))


def _content(where: str, kind: str, value: Any) -> Any:
    if kind in ("prompt", "text"):
        if not isinstance(value, str) or not value:
            raise InputError(where, "must be text", value)
        return value
    if not isinstance(value, list) or not value:
        raise InputError(where, "must be a list that is not empty", value)
    if kind == "tokens":
        if not all(type(token) is int and 0 <= token < 2**31 for token in value):
            raise InputError(where, "must be token ids", value)
        return tuple(value)
    for message in value:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise InputError(where, "must be messages with role and content as text", message)
    return tuple({"role": each["role"], "content": each["content"]} for each in value)
