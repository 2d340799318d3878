"""Experts that an engine returned with each response: SGLang and vLLM.

Files: one response, a list of them, or JSON Lines; or .npz/.npy of the arrays themselves.

- SGLang, `return_routed_experts`: `meta_info.routed_experts`, or `sglext.routed_experts` with the
  OpenAI endpoints: base64 of [prompt + output - 1, layers, top_k] ids, int32 unless
  `routed_experts_dtype` says otherwise; forks send zlib of int16.
- vLLM, `--enable-return-routed-experts`: `routed_experts` of each of `choices` (or `outputs`),
  [tokens, layers, top_k] as base64 of an .npy file, or as nested lists; with 0.21 and later the
  prompt's are in `prompt_routed_experts`. First releases gave all layers, dense ones as zeros.

The last sampled token was never computed, so it has no experts.

Legend: T tokens, L layers, K top-k.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.files import existing_file
from moesim.routing import checks
from moesim.routing.formats.base import Format, Source, is_json_lines, read_json, read_json_lines
from moesim.routing.npz import read_npy, read_npz
from moesim.routing.recording import About, Recorded, assemble
from moesim.routing.trace import RoutingTrace

MAX_BYTES = 2**30
DTYPES = {"int32": "<i4", "uint16": "<u2", "int16": "<i2", "uint8": "|u1"}
_NPY = b"\x93NUMPY"
_ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")

Response = Mapping[str, Any]


def recognises(source: Source) -> bool:
    array = source.head.startswith(_NPY) or "routed_experts.npy" in source.names
    return array or source.has_key("routed_experts") or source.has_key("prompt_routed_experts")


def read(files: Sequence[Path], about: About) -> RoutingTrace:
    """One trace of all responses; each choice of a response is a sequence."""
    found: list[Recorded] = []
    for number, file in enumerate(files):
        own = about.domain(number, len(files), file.stem)
        for count, response in enumerate(_responses(file)):
            try:
                domain = response.get("domain")
                named = domain if isinstance(domain, str) and not about.domains else own
                found.extend(_sequences(response, about, named))
            except InputError as error:
                raise InputError(f"{file}: response {count}", str(error)) from None
    if not found:
        raise InputError(str(files[0]), "must hold at least one response with routed_experts")
    return assemble(found, about)


def _responses(file: Path) -> Iterator[Response]:
    head = Source.look(file)
    if head.head.startswith(_NPY):
        existing_file(file, MAX_BYTES)
        yield {"routed_experts": read_npy(file.read_bytes(), str(file))}
    elif head.names:
        names = ("routed_experts", "prompt_routed_experts", "prompt_token_ids")
        yield read_npz(file, names)
    elif is_json_lines(file):
        yield from read_json_lines(file)
    else:
        content = read_json(file)
        responses = content if isinstance(content, list) else [content]
        for response in responses:
            if not isinstance(response, dict):
                raise InputError(str(file), "must be a response, or a list of responses")
            yield response


def _sequences(response: Response, about: About, domain: str) -> Iterator[Recorded]:
    """The sequences of one response: none if it has no routing (a request that did not ask)."""
    for key in ("meta_info", "sglext"):
        part = response.get(key)
        if isinstance(part, dict) and part.get("routed_experts") is not None:
            yield _whole(part["routed_experts"], {**response, **part}, about, domain)
            return
    separate = response.get("prompt_routed_experts")
    prompt_TLK = None if separate is None else _array(separate, response, None, about)
    choices = response.get("choices", response.get("outputs"))
    for choice in choices if isinstance(choices, list) else [response]:
        if not isinstance(choice, dict):
            raise InputError("choices", "must be a list of objects")
        routed = choice.get("routed_experts")
        if routed is None and prompt_TLK is None:
            continue
        if prompt_TLK is None and "prompt_routed_experts" not in response:
            yield _whole(routed, {**response, **choice}, about, domain)
            continue
        parts = [] if routed is None else [_array(routed, {**response, **choice}, None, about)]
        prompt_tokens = 0
        if prompt_TLK is not None:  # of several choices the first has the prompt
            prompt_tokens = len(prompt_TLK)
            parts.insert(0, prompt_TLK)
            prompt_TLK = None
        if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
            raise InputError("routed_experts", "must have the prompt's layers and top_k")
        yield Recorded(np.concatenate(parts), prompt_tokens, domain)


def _whole(routed: object, response: Response, about: About, domain: str) -> Recorded:
    """Prompt and output in one array: where the prompt ends is said elsewhere in the response."""
    prompt = _count(response, "prompt_tokens")
    if prompt is None and isinstance(response.get("prompt_token_ids"), list | np.ndarray):
        prompt = len(response["prompt_token_ids"])
    output = _count(response, "completion_tokens")
    start = _count(response, "routed_experts_start_len") or 0
    positions = None if prompt is None or output is None else max(prompt + output - 1 - start, 1)
    ids_TLK = _array(routed, response, positions, about)
    if prompt is None and about.phase is None:
        raise InputError("prompt_tokens", "is not in the response: give --phase prefill or decode")
    if about.phase is not None and prompt is None:
        prompt = len(ids_TLK) if about.phase == "prefill" else 0
    return Recorded(ids_TLK, min(max((prompt or 0) - start, 0), len(ids_TLK)), domain)


def _count(response: Response, key: str) -> int | None:
    usage = response.get("usage")
    value = response.get(key, usage.get(key) if isinstance(usage, dict) else None)
    if value is not None and (type(value) is not int or not 0 <= value <= checks.MAX_TOKENS):
        raise InputError(key, "must be a number of tokens", value)
    return value


def _array(routed: object, response: Response, positions: int | None, about: About) -> NDArray[Any]:
    """Ids [T, L, K] of any whole type, out of whatever the engine sent."""
    if isinstance(routed, np.ndarray):
        return _shaped(routed)
    if isinstance(routed, list):
        try:
            array = np.array(routed)
        except (ValueError, OverflowError):
            raise InputError("routed_experts", "must be [tokens][layers][top_k]") from None
        return _shaped(array)
    if isinstance(routed, dict):  # {"data": base64, "shape": [T, L, K], "dtype": "int16"}
        return _described(routed)
    if not isinstance(routed, str):
        raise InputError("routed_experts", "must be base64 or nested lists")
    data = _bytes(routed)
    if data.startswith(_NPY):
        return _shaped(read_npy(data, "routed_experts"))
    return _flat(data, response.get("routed_experts_dtype"), positions, about)


def _shaped(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim != 3 or array.dtype.kind not in "iu":
        raise InputError("routed_experts", "must be whole [tokens, layers, top_k]", array.shape)
    return array


def _bytes(text: str) -> bytes:
    if len(text) > MAX_BYTES:
        raise InputError("routed_experts", f"must be at most {MAX_BYTES} characters", len(text))
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError("routed_experts", f"must be base64: {error}") from None


def _described(routed: Mapping[str, Any]) -> NDArray[Any]:
    data, shape = routed.get("data"), routed.get("shape")
    dtype = _dtype(routed.get("dtype", "int16"))
    if not isinstance(data, str) or not isinstance(shape, list) or len(shape) != 3:
        raise InputError("routed_experts", "must hold data and a shape of 3 numbers")
    values = _numbers(_bytes(data), dtype)
    try:
        return values.reshape([int(n) for n in shape if type(n) is int and n > 0])
    except (ValueError, OverflowError):
        raise InputError("routed_experts.shape", f"must fit {len(values)} ids", shape) from None


def _dtype(name: object) -> np.dtype[Any]:
    if not isinstance(name, str) or name not in DTYPES:
        raise InputError("routed_experts_dtype", f"must be among {', '.join(DTYPES)}", name)
    return np.dtype(DTYPES[name])


def _numbers(data: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not data or len(data) % dtype.itemsize:
        raise InputError("routed_experts", f"must be whole {dtype.name} ids", len(data))
    return np.frombuffer(data, dtype)


def _flat(data: bytes, name: object, positions: int | None, about: About) -> NDArray[Any]:
    """Ids without a shape: the number of tokens and top-k give it, or the model's layers do."""
    top_k = about.needed_top_k()
    if name is not None:
        return _split(_numbers(data, _dtype(name)), positions, top_k, about)
    for unpacked, dtypes in ((data, DTYPES), (None, ("int16", "int32"))):
        if unpacked is None:
            if not data.startswith(_ZLIB):
                break
            unpacked = _inflate(data)
        for dtype in dtypes:
            try:
                return _split(_numbers(unpacked, np.dtype(DTYPES[dtype])), positions, top_k, about)
            except InputError:
                continue
    known = "the model's layers" if about.moe_layers else "a whole number of layers"
    rule = f"must be ids of {positions or 'some'} tokens, {known} and {top_k} experts"
    raise InputError("routed_experts", rule, f"{len(data)} bytes")


def _split(ids: NDArray[Any], positions: int | None, top_k: int, about: About) -> NDArray[Any]:
    layers = {about.layers, len(about.moe_layers)} - {None, 0}
    if positions is None:
        # Without the number of tokens, only a known number of layers tells where a token ends.
        fitting = [n for n in layers if n and len(ids) % (n * top_k) == 0]
        if len(fitting) != 1:
            raise InputError("prompt_tokens", "and completion_tokens must be in the response")
        return ids.reshape(-1, fitting[0], top_k)
    if len(ids) % (positions * top_k) or (layers and len(ids) // (positions * top_k) not in layers):
        raise InputError("routed_experts", f"must be ids of {positions} tokens", len(ids))
    return ids.reshape(positions, -1, top_k)


def _inflate(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data, MAX_BYTES)
    except zlib.error as error:
        raise InputError("routed_experts", f"must be sound zlib data: {error}") from None
    if not unpacker.eof:
        raise InputError("routed_experts", f"must unpack to at most {MAX_BYTES} bytes, whole")
    return unpacked


FORMAT = Format("routed-experts", "SGLang or vLLM per-request routed_experts", recognises, read)
