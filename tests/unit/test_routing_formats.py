"""Recordings of engines and public collections: read right, told apart, and never believed."""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing import formats
from moesim.routing.export import export_trace
from moesim.routing.formats import detect, routed_experts
from moesim.routing.importers import About, about_model, import_recording
from moesim.routing.marginal_profile import MarginalProfile
from moesim.routing.trace import RoutingTrace
from tests.fixtures.recordings import (
    EXPERTS,
    MOE_LAYERS,
    TOP_K,
    all_layers,
    balance_lines,
    drawn_ids,
    encoded,
    encoded_npy,
    esft_folder,
    fingerprint,
    imatrix,
    narrow_csv,
    sglang_dump,
    sglang_pass,
    sglang_response,
    sglang_stat,
    trtllm_folder,
    write_torch,
)

REAL = Path(__file__).parents[1] / "fixtures" / "torch"
# What is known of the toy model: 4 layers, the first dense, 2 of 8 experts.
TOY = About(model="toy", experts=EXPERTS, top_k=TOP_K, layers=4, moe_layers=MOE_LAYERS)
DECODED = About(model="toy", experts=EXPERTS, top_k=TOP_K, phase="decode")
IDS = drawn_ids(9)
WEIGHTS = np.random.default_rng(1).random(IDS.shape).astype(np.float16)
COUNTS_LE = np.random.default_rng(2).multinomial(400, [0.4] + [0.6 / 7] * 7, 3) + 1


def trace_of(paths: Path | list[Path], about: About = TOY, name: str | None = None) -> RoutingTrace:
    files: list[Any] = paths if isinstance(paths, list) else [paths]
    made, found = import_recording(files, about)
    assert name is None or found.name == name
    assert isinstance(made, RoutingTrace)
    assert made.provenance["format"] == found.name
    return made


def profile_of(paths: Path | list[Path], about: About = TOY) -> MarginalProfile:
    files: list[Any] = paths if isinstance(paths, list) else [paths]
    made, _ = import_recording(files, about)
    assert isinstance(made, MarginalProfile)
    return made


def refused(paths: Path | list[Path], message: str, about: About = TOY) -> None:
    files: list[Any] = paths if isinstance(paths, list) else [paths]
    with pytest.raises(InputError) as error:
        import_recording(files, about)
    assert message in str(error.value), str(error.value)
    assert "\n" not in str(error.value)
    assert str(files[0].parent) in str(error.value)


def shares(counts_LE: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(TOP_K * counts_LE / counts_LE.sum(axis=1, keepdims=True))


def write(path: Path, content: str | bytes | dict[str, Any] | list[Any]) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# SGLang's recorder


def test_sglang_stat_is_a_marginal_profile(tmp_path: Path) -> None:
    counts_LE = np.concatenate([np.zeros((1, EXPERTS), np.int64), COUNTS_LE])
    steps = np.stack([counts_LE, 2 * counts_LE, counts_LE]).astype(np.int32)
    made = profile_of(write_torch(tmp_path / "r.pt", sglang_stat(steps)))
    np.testing.assert_allclose(made.share_LE, shares(COUNTS_LE))
    assert made.layers_L == MOE_LAYERS
    assert (made.top_k, made.experts) == (TOP_K, EXPERTS)
    twice = [write_torch(tmp_path / f"{i}.pt", sglang_stat(steps)) for i in range(2)]
    np.testing.assert_allclose(profile_of(twice).share_LE, made.share_LE)


# Logical expert e is physical e, and those from 8 on are copies of 3 and 5, layer by layer.
MAP_LP = np.array(
    [[*range(8), 3, 5], [*range(8), 3, 5], [*range(7, -1, -1), 3, 5], [*range(8), 0, 0]]
)


def physical(ids_TLK: NDArray[Any], seed: int = 0) -> NDArray[np.int64]:
    """A physical expert for each logical one, any of its copies."""
    rng = np.random.default_rng(seed)
    chosen = np.empty_like(ids_TLK)
    for t, layer, k in np.ndindex(ids_TLK.shape):
        slots = np.flatnonzero(MAP_LP[MOE_LAYERS[layer]] == ids_TLK[t, layer, k])
        chosen[t, layer, k] = rng.choice(slots)
    return chosen


def test_sglang_per_pass_is_summed_over_ranks_and_copies(tmp_path: Path) -> None:
    ids = drawn_ids(40)
    files = []
    for rank in range(2):
        part = physical(ids[rank::2])
        record = sglang_pass(7, 2, [0] * 20, part, physical=10, rank=rank)
        for key in ("topk_ids_of_layer", "positions", "input_ids", "forward_mode"):
            del record[key]
        files.append(write_torch(tmp_path / f"{rank}.pt", sglang_dump([record], MAP_LP)))
    counts = np.array([np.bincount(ids[:, i].ravel(), minlength=8) for i in range(3)])
    np.testing.assert_allclose(profile_of(files).share_LE, shares(counts))


def recorded_requests(seed: int = 0) -> tuple[list[NDArray[Any]], list[dict[str, Any]]]:
    """Three requests of 5, 3, 4 prompt tokens, served as SGLang would; and its passes.

    A is prefilled in two chunks, B joins A's second; C comes in a mixed pass. B ends first.
    """
    a, b, c = (drawn_ids(n, seed + i) for i, n in enumerate((9, 5, 6)))
    p = physical
    join = np.concatenate
    passes = [
        sglang_pass(1, 1, [0, 1, 2], p(a[:3]), [3], 10),
        sglang_pass(2, 1, [3, 4, 0, 1, 2], p(join([a[3:5], b[:3]])), [2, 3], 10),
        sglang_pass(3, 2, [5, 3], p(join([a[5:6], b[3:4]])), None, 10),
        sglang_pass(4, 3, [0, 1, 2, 3, 6, 4], p(join([c[:4], a[6:7], b[4:5]])), [4, 1, 1], 10),
        sglang_pass(5, 4, [], p(a[:0]), None, 10),
        sglang_pass(6, 2, [4, 7], p(join([c[4:5], a[7:8]])), None, 10),
        sglang_pass(7, 2, [5, 8], p(join([c[5:6], a[8:9]])), None, 10),
    ]
    return [a, b, c], passes


def test_sglang_per_token_gives_requests_back(tmp_path: Path) -> None:
    requests, passes = recorded_requests()
    path = write_torch(tmp_path / "r_0.pt", sglang_dump(passes[::-1], MAP_LP))
    made = trace_of(path, name="sglang-recorder")
    assert made.prompt_tokens_S.tolist() == [5, 3, 4]
    assert made.sequence_tokens_S.tolist() == [9, 5, 6]
    np.testing.assert_array_equal(made.ids_TLK, np.concatenate(requests))
    assert made.layers_L.tolist() == list(MOE_LAYERS)
    # Of an unknown model, layers without a choice are dense; the map says how many experts.
    unknown = trace_of(path, About(model="?"))
    np.testing.assert_array_equal(unknown.ids_TLK, made.ids_TLK)
    assert unknown.layers_L.tolist() == list(MOE_LAYERS)
    assert unknown.experts == EXPERTS


def test_sglang_ranks_that_saw_the_same_tokens_count_once(tmp_path: Path) -> None:
    _, passes = recorded_requests()
    same = [write_torch(tmp_path / f"{r}.pt", sglang_dump(passes, MAP_LP)) for r in range(4)]
    assert trace_of(same).sequences == 3
    more = [sglang_pass(1, 1, range(11, 15), physical(drawn_ids(4)), [4], 10, rank=1)]
    own = [same[0], write_torch(tmp_path / "own.pt", sglang_dump(more, MAP_LP))]
    assert trace_of(own).sequence_tokens_S.tolist() == [9, 5, 6, 4]


def test_sglang_requests_that_cannot_be_told_apart_are_cut(tmp_path: Path) -> None:
    """Three at one position, then two: whichever ended, no sequence mixes two requests."""
    ids = drawn_ids(8)
    passes = [
        sglang_pass(1, 2, [6, 6, 6], ids[:3]),
        sglang_pass(2, 2, [7, 7, 7], ids[3:6]),
        sglang_pass(3, 2, [8, 8], ids[6:]),
    ]
    made = trace_of(write_torch(tmp_path / "r.pt", sglang_dump(passes)))
    assert made.sequence_tokens_S.tolist() == [2, 2, 2, 1, 1]
    assert made.prompt_tokens_S.tolist() == [0] * 5
    np.testing.assert_array_equal(made.ids_TLK[:2], ids[[0, 3]])


def test_a_recording_that_torch_wrote_is_read() -> None:
    """tests/fixtures/torch/per_token.pt: `recorded_requests` saved by torch 2.13."""
    requests, _ = recorded_requests()
    made = trace_of(REAL / "per_token.pt", name="sglang-recorder")
    np.testing.assert_array_equal(made.ids_TLK, np.concatenate(requests))


def bad_record(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    _, passes = recorded_requests()
    change(passes[1])
    return sglang_dump(passes, MAP_LP)


def with_id(expert: int) -> Callable[[dict[str, Any]], Any]:
    def change(record: dict[str, Any]) -> None:
        record["topk_ids_of_layer"][2, 1, 0] = expert

    return change


SGLANG_FAULTS: dict[str, tuple[Any, str]] = {
    "list": ([1], "must hold logical_count, or records"),
    "text": ({"logical_count": "7"}, "must hold logical_count, or records"),
    "no records": ({"records": []}, "at least one record"),
    "no map": ({"records": [{}]}, "must hold last_physical_to_logical_map"),
    "float counts": (sglang_stat(np.ones((1, 4, 8))), "logical_count as whole numbers"),  # type: ignore[arg-type]
    "negative counts": (sglang_stat(np.full((1, 4, 8), -1, np.int32)), "must not be negative"),
    "no counts": (sglang_stat(np.zeros((1, 4, 8), np.int32)), "must not all be 0"),
    "other experts": (sglang_stat(np.ones((1, 4, 9), np.int32)), "must be the 8 experts"),
    "flat counts": (sglang_stat(np.ones(8, np.int32)), "in 3 dimensions"),
    "id": (bad_record(with_id(10)), "must be physical experts below 10"),
    "negative id": (bad_record(with_id(-2)), "must be physical experts below 10"),
    "positions": (bad_record(lambda r: r.update(positions=[0, 5, 0, 1, 2])), "must rise by 1"),
    "lengths": (bad_record(lambda r: r.update(extend_seq_lens=[2, 2])), "must sum to 5"),
    "mode": (bad_record(lambda r: r.update(forward_mode=5)), "no speculative decoding"),
    "pass": (bad_record(lambda r: r.update(forward_pass_id="1")), "must be a whole number"),
    "layers": (
        bad_record(lambda r: r.update(topk_ids_of_layer=r["topk_ids_of_layer"][:2])),
        "must have 4 layers",
    ),
    "tokens": (
        bad_record(lambda r: r.update(topk_ids_of_layer=r["topk_ids_of_layer"][:, :2].copy())),
        "positions must be 2",
    ),
    "map": (sglang_dump(recorded_requests()[1], np.full((4, 10), -3)), "experts from 0"),
}


@pytest.mark.parametrize("fault", SGLANG_FAULTS)
def test_unsound_sglang_recordings_are_refused(tmp_path: Path, fault: str) -> None:
    content, message = SGLANG_FAULTS[fault]
    refused(write_torch(tmp_path / "r.pt", content), message)


def test_an_expert_chosen_twice_is_refused(tmp_path: Path) -> None:
    record = sglang_pass(1, 1, [0, 1], np.ones((2, 3, 2), np.int64), [2])
    refused(write_torch(tmp_path / "r.pt", sglang_dump([record])), "must be distinct")


# Responses


def whole(ids: NDArray[Any]) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": 4, "completion_tokens": 6}, **vllm(ids)}


def vllm(ids: Any, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "routed_experts": ids}], **more}


RESPONSES: dict[str, dict[str, Any]] = {
    "sglang int32": sglang_response(all_layers(IDS), 4),
    "sglang moe layers": sglang_response(IDS, 4),
    "sglang uint8": sglang_response(
        IDS, 4, routed_experts=encoded(all_layers(IDS), "|u1"), routed_experts_dtype="uint8"
    ),
    "sglang uint8, unsaid": sglang_response(IDS, 4, routed_experts=encoded(IDS, "|u1")),
    "sglang zlib int16": sglang_response(
        IDS, 4, routed_experts=encoded(all_layers(IDS), "<i2", packed=True)
    ),
    "sglext": {
        "usage": {"prompt_tokens": 4, "completion_tokens": 6},
        "choices": [{"message": {}}],
        "sglext": {"routed_experts": encoded(all_layers(IDS))},
    },
    "sglang-jax": sglang_response(all_layers(IDS, -1), 4),
    "vllm npy": whole(encoded_npy(IDS)),
    "vllm npy all layers": whole(encoded_npy(all_layers(IDS), "<i4")),
    "vllm lists": whole(IDS.tolist()),
    "vllm split": vllm(encoded_npy(IDS[4:]), prompt_routed_experts=encoded_npy(IDS[:4])),
    "vllm outputs": {
        "prompt_token_ids": [7] * 4,
        "outputs": [{"routed_experts": all_layers(IDS).tolist()}],
    },
    "described": whole(
        {"data": encoded(IDS, "<i2"), "shape": [9, 3, 2], "dtype": "int16"}  # type: ignore[arg-type]
    ),
}


@pytest.mark.parametrize("kind", RESPONSES)
def test_responses_are_read(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "r.json", RESPONSES[kind])
    made = trace_of(path, name="routed-experts")
    np.testing.assert_array_equal(made.ids_TLK, IDS)
    assert made.prompt_tokens_S.tolist() == [4]
    assert made.layers_L.tolist() == list(MOE_LAYERS)


def test_responses_by_the_line_are_sequences(tmp_path: Path) -> None:
    lines = [
        {**RESPONSES["vllm npy"], "domain": "law"},
        RESPONSES["sglang moe layers"],
        {"error": 1},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    made = trace_of(write(tmp_path / "chat.jsonl", text))
    assert made.sequences == 2
    assert [made.domains[d] for d in made.domain_S] == ["law", "chat"]
    same = trace_of(write(tmp_path / "chat.json", lines))
    np.testing.assert_array_equal(same.ids_TLK, made.ids_TLK)


def test_of_several_choices_the_first_has_the_prompt(tmp_path: Path) -> None:
    other = drawn_ids(3, seed=9)
    response = vllm(encoded_npy(IDS[4:]), prompt_routed_experts=encoded_npy(IDS[:4]))
    response["choices"].append({"index": 1, "routed_experts": encoded_npy(other)})
    made = trace_of(write(tmp_path / "r.json", response))
    assert made.sequence_tokens_S.tolist() == [9, 3]
    assert made.prompt_tokens_S.tolist() == [4, 0]


def test_arrays_in_npz_and_npy_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", routed_experts=IDS, prompt_token_ids=np.arange(4))
    np.testing.assert_array_equal(trace_of(tmp_path / "r.npz").ids_TLK, IDS)
    np.save(tmp_path / "r.npy", IDS.astype(np.int16))
    made = trace_of(tmp_path / "r.npy", DECODED)
    np.testing.assert_array_equal(made.ids_TLK, IDS)
    assert made.prompt_tokens_S.tolist() == [0]


def test_tokens_that_were_not_recorded_are_cut_off(tmp_path: Path) -> None:
    """Zeros (vLLM, a cached prefix) or -1 (a token that was never computed) at the ends."""
    for nothing in (0, -1):
        ids = np.concatenate([np.full((2, 3, 2), nothing), IDS, np.full((1, 3, 2), nothing)])
        usage = {"prompt_tokens": 6, "completion_tokens": 7}
        response = {"usage": usage, **vllm(ids.tolist())}
        made = trace_of(write(tmp_path / "r.json", response))
        np.testing.assert_array_equal(made.ids_TLK, IDS)
        assert made.prompt_tokens_S.tolist() == [4]
        assert made.provenance["tokens_not_recorded"] == "3"
    gap = IDS.copy()
    gap[3] = 0
    refused(write(tmp_path / "r.json", whole(gap.tolist())), "for every token: 3 has none")


def test_dense_layers_of_an_unknown_model_are_found(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", whole(all_layers(IDS).tolist()))
    made = trace_of(path, About(model="?", experts=8))
    np.testing.assert_array_equal(made.ids_TLK, IDS)
    assert made.layers_L.tolist() == [1, 2, 3]


RESPONSE_FAULTS: dict[str, tuple[Any, str]] = {
    "nothing": ({"routed_experts": None}, "at least one response"),
    "number": (whole(7), "must be base64 or nested lists"),  # type: ignore[arg-type]
    "no base64": (whole("*" * 20), "must be base64"),  # type: ignore[arg-type]
    "cut": (whole(encoded_npy(IDS)[:-40]), "must be a sound .npy file"),  # type: ignore[arg-type]
    "huge npy": (
        whole(
            base64.b64encode(  # type: ignore[arg-type]
                b"\x93NUMPY\x01\x00v\x00{'descr': '<i2', 'fortran_order': False, "
                b"'shape': (99999999999, 3, 2), }".ljust(10 + 118)
            ).decode()
        ),
        "claims 1199999999988 bytes",
    ),
    "object npy": (
        whole(
            base64.b64encode(  # type: ignore[arg-type]
                b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, "
                b"'shape': (9, 3, 2), }".ljust(10 + 118)
            ).decode()
        ),
        "not plain numbers",
    ),
    "float npy": (whole(encoded_npy(IDS, "<f4")), "must be whole [tokens, layers, top_k]"),  # type: ignore[arg-type]
    "ragged": (whole([[[1, 2]], [[1]]]), "must be [tokens][layers][top_k]"),  # type: ignore[arg-type]
    "flat": (whole([1, 2]), "must be whole [tokens, layers, top_k]"),  # type: ignore[arg-type]
    "huge number": (whole([[[10**30, 1]]]), "must be"),  # type: ignore[arg-type]
    "out of range": (whole((IDS + 1).tolist()), "ids must be 0 to 7"),  # type: ignore[arg-type]
    "negative": (whole((IDS - 1).tolist()), "ids must be 0 to 7; got -1"),  # type: ignore[arg-type]
    "twice": (whole(np.ones_like(IDS).tolist()), "must be distinct"),  # type: ignore[arg-type]
    "layers": (whole(IDS[:, :2].tolist()), "3 MoE layers, or 4 in all; got 2"),  # type: ignore[arg-type]
    "top_k": (whole(drawn_ids(9)[:, :, :1].tolist()), "top_k must be 2"),  # type: ignore[arg-type]
    "dtype": (sglang_response(IDS, 4, routed_experts_dtype="float64"), "must be among int32"),
    "length": (sglang_response(IDS[:-1], 4, completion_tokens=17), "must be ids of 20 tokens"),
    "negative count": (sglang_response(IDS, 4, prompt_tokens=-4), "must be a number of tokens"),
    "zlib": (
        sglang_response(IDS, 4, routed_experts=base64.b64encode(b"\x78\x9c" + b"a" * 30).decode()),
        "must be sound zlib data",
    ),
    "shape": (whole({"data": encoded(IDS, "<i2"), "shape": [9, 3, 3]}), "must fit 54 ids"),  # type: ignore[arg-type]
    "json": ('{"routed_experts": [', "must be JSON"),
    "deep": ('{"routed_experts": ' + "[" * 100_000, "must be JSON"),
}


@pytest.mark.parametrize("fault", RESPONSE_FAULTS)
def test_unsound_responses_are_refused(tmp_path: Path, fault: str) -> None:
    content, message = RESPONSE_FAULTS[fault]
    refused(write(tmp_path / "r.json", content), message)


def test_a_zlib_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routed_experts, "MAX_BYTES", 10**6)
    bomb = base64.b64encode(zlib.compress(bytes(10**8))).decode()
    response = sglang_response(IDS, 4, routed_experts=bomb)
    refused(write(tmp_path / "r.json", response), "must unpack to at most 1000000 bytes")


def test_a_response_that_does_not_say_enough_asks_for_it(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", vllm(IDS.tolist()))
    refused(path, "give --phase prefill or decode")
    refused(path, "experts is not in this format", About(model="?", phase="decode"))
    flat = write(tmp_path / "f.json", sglang_response(IDS, 4))
    refused(flat, "give --top-k", About(model="?", experts=8))


# Counts


def test_tensorrt_llm_counts_are_summed(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(100, 200, (2, 4, 3, EXPERTS))  # rank, iteration
    folder = trtllm_folder(tmp_path / "statistic", counts)
    made = profile_of(folder, About(model="toy"))
    np.testing.assert_allclose(made.share_LE, shares(counts.sum(axis=(0, 1))))
    assert (made.layers_L, made.top_k) == (MOE_LAYERS, TOP_K)
    assert detect(folder / "meta_info.json").name == "tensorrt-llm-statistics"


def test_unsound_tensorrt_llm_folders_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = trtllm_folder(tmp_path / "s", np.ones((1, 1, 3, EXPERTS), np.int64))
    rank = folder / "rank0.safetensors"
    for tensors, message in (
        ({"1_1": np.full(8, -1)}, "must hold counts from 0"),
        ({"1_1": np.ones(9, np.int64)}, "must hold counts of 8 experts"),
        ({"1_1": np.ones(8, np.float32)}, "must hold counts of 8 experts"),
        ({"x": np.ones(8, np.int64)}, "named ITERATION_LAYER"),
        ({"1_1": np.zeros(8, np.int64)}, "must not all be 0"),
        ({"1_1": np.array([9, 1, 1, 1, 1, 1, 1, 1])}, "chosen more often than there are tokens"),
    ):
        save_file(tensors, rank)
        refused(folder, message)
    rank.write_bytes(rank.read_bytes()[:-3])
    refused(folder, "must be a safetensors file")
    for meta in (
        "[]",
        '{"num_experts": 8}',
        '{"num_experts": 1e9, "num_experts_per_token": 2}',
        "{",
    ):
        (folder / "meta_info.json").write_text(meta)
        refused(folder, "must be")
    shutil.rmtree(folder)
    refused(folder, "must be an existing file")


def test_an_imatrix_is_a_marginal_profile(tmp_path: Path) -> None:
    even = np.full((3, EXPERTS), 250) + np.arange(-4, 4) * 10
    path = write(tmp_path / "i.gguf", imatrix(even, 2, int(even[0].sum()) // (2 * TOP_K)))
    made = profile_of(path, About(model="toy"))
    np.testing.assert_allclose(made.share_LE, shares(even))
    assert (made.layers_L, made.top_k) == (MOE_LAYERS, TOP_K)
    odd = write(tmp_path / "odd.gguf", imatrix(even, 2, 777))
    refused(odd, "does not follow from the file's chunks", About(model="toy"))
    assert profile_of(odd, TOY).top_k == TOP_K
    two = profile_of([path, path], About(model="toy"))
    np.testing.assert_allclose(two.share_LE, made.share_LE)


def test_an_imatrix_that_is_not_sound_is_refused(tmp_path: Path) -> None:
    counts = COUNTS_LE.astype(float)
    for value, message in ((-1.0, "counts from 0"), (np.nan, "counts from 0"), (np.inf, "from 0")):
        bad = counts.copy()
        bad[1, 3] = value
        refused(write(tmp_path / "i.gguf", imatrix(bad, 1, 100)), message)
    refused(write(tmp_path / "i.gguf", imatrix(counts[:0], 1, 100)), "must hold counts of experts")
    sound = imatrix(COUNTS_LE, 1, 100)
    model = sound.replace(b"\x07\0\0\0\0\0\0\0imatrix", b"\x07\0\0\0\0\0\0\0adapter", 1)
    refused(write(tmp_path / "i.gguf", model), "must be an importance matrix")


# Tables of public collections


def test_csv_of_positions_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "py.csv", narrow_csv(IDS, WEIGHTS, [5, 6, 7, 8, 9, 2, 3, 4, 5]))
    made = trace_of(path, DECODED, "csv")
    np.testing.assert_array_equal(made.ids_TLK, IDS)
    np.testing.assert_array_equal(made.weights_TLK, WEIGHTS)
    assert made.sequence_tokens_S.tolist() == [5, 4]
    assert made.layers_L.tolist() == list(MOE_LAYERS)
    assert made.domains == ("py",)
    refused(path, "give --phase prefill or decode")


def own_trace() -> RoutingTrace:
    return RoutingTrace(
        IDS.astype(np.uint8),
        np.array([0, 5, 9]),
        np.array([3, 0], np.int32),
        np.array([1, 0], np.uint16),
        ("law", "co,de"),
        np.array(MOE_LAYERS, np.int32),
        EXPERTS,
        "toy",
        {},
        WEIGHTS,
    )


@pytest.mark.parametrize("ending", [".csv", ".npz"])
def test_an_exported_trace_comes_back(tmp_path: Path, ending: str) -> None:
    trace = own_trace()
    export_trace(trace, tmp_path / f"t{ending}")
    made = trace_of(tmp_path / f"t{ending}", About(model="toy", experts=EXPERTS))
    np.testing.assert_array_equal(made.ids_TLK, trace.ids_TLK)
    np.testing.assert_array_equal(made.weights_TLK, trace.weights_TLK)
    np.testing.assert_array_equal(made.sequence_start_S1, trace.sequence_start_S1)
    np.testing.assert_array_equal(made.prompt_tokens_S, trace.prompt_tokens_S)
    np.testing.assert_array_equal(made.layers_L, trace.layers_L)
    if ending == ".csv":
        assert [made.domains[d] for d in made.domain_S] == ["co,de", "law"]


def edited(old: str, new: str) -> str:
    text = narrow_csv(IDS, WEIGHTS, range(9))
    assert old in text
    return text.replace(old, new, 1)


FIRST = f"\n0,1,2,{IDS[0, 0, 0]},"
FIRST_WEIGHT = f",{WEIGHTS[0, 0, 0]!s},"
CSV_FAULTS = {
    "no rows": ("pos,layer,e0\n", "must have at least one row"),
    "text": (edited(FIRST, "\n0,1,2,one,"), "line 2, column e0 must be a whole number; got 'one'"),
    "missing": (edited(FIRST, "\n0,1,2,,"), "line 2, column e0 must be a whole number; got ''"),
    "fraction": (edited(FIRST, "\n0,1,2,1.5,"), "line 2, column e0 must be a whole number"),
    "huge": (edited(FIRST, f"\n0,1,2,{10**30},"), "line 2, column e0 must be a whole"),
    "range": (edited(FIRST, "\n0,1,2,8,"), "line 2, column e0 must be 0 to 7; got 8"),
    "negative": (edited(FIRST, "\n0,1,2,-1,"), "line 2, column e0 must be 0 to 7; got -1"),
    "twice": (edited(FIRST, f"\n0,1,2,{IDS[0, 0, 1]},"), "must be distinct"),
    "few": (edited(FIRST, f"\n0,1,1,{IDS[0, 0, 0]},"), "line 2, column n must be 2"),
    "layer": (edited("\n0,2,", "\n0,1,"), "column layer must be all layers in rising order"),
    "negative layer": (edited("\n0,1,", "\n0,-1,"), "must be"),
    "position": (edited("\n3,2,", "\n4,2,"), "must be the same in all layers"),
    "cut": (edited("\n", "\n").rsplit("\n", 3)[0], "must be 3 for each token"),
    "columns": (edited("e1", "e7"), "must be e0 to e1"),
    "unknown": (edited("e1", "other"), "must have the columns of one of its layouts"),
    "same": (edited("e1", "e0"), "must name each column once"),
    "nan weight": (edited(FIRST_WEIGHT, ",nan,"), "must be finite"),
    "negative weight": (edited(FIRST_WEIGHT, ",-1,"), "must be finite"),
    "infinite weight": (edited(FIRST_WEIGHT, ",1e30,"), "must be finite"),
}


@pytest.mark.parametrize("fault", CSV_FAULTS)
def test_unsound_csv_is_refused(tmp_path: Path, fault: str) -> None:
    content, message = CSV_FAULTS[fault]
    refused(write(tmp_path / "t.csv", content), message, DECODED)


def test_fingerprinting_examples_are_read(tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"{name}_examples.json", fingerprint(ids, weights, name))
        for name, ids, weights in (
            ("law", IDS[:5], WEIGHTS[:5]),
            ("math", IDS[5:], WEIGHTS[5:]),
        )
    ]
    made = trace_of(files, name="fingerprinting")
    np.testing.assert_array_equal(made.ids_TLK, IDS)
    np.testing.assert_array_equal(made.weights_TLK, WEIGHTS)
    assert made.sequence_tokens_S.tolist() == [5, 4]
    assert made.prompt_tokens_S.tolist() == [0, 0]
    assert [made.domains[d] for d in made.domain_S] == ["law", "math"]


def test_unsound_fingerprinting_examples_are_refused(tmp_path: Path) -> None:
    def example(**changes: Any) -> dict[str, Any]:
        return {**fingerprint(IDS, WEIGHTS, "law"), **changes}

    tokens = example()["router_data"]
    broken = json.loads(json.dumps(tokens))
    del broken[2]["token_193"]["layer_2"]
    for router_data, message in (
        ({}, "must be a list of tokens"),
        ([], "at least one token"),
        (tokens + tokens, "must hold each token_N once"),
        (tokens[:3] + tokens[4:], "every token from the first to the last"),
        ([{"token_x": {}}], "must hold each token_N once"),
        (broken, "must have experts and weights in every layer"),
        (
            [{"token_1": {"layer_1": {"selected_experts": [1, 2], "selected_probs": ["a", 1]}}}],
            "must",
        ),
    ):
        path = write(tmp_path / "e.json", example(router_data=router_data))
        refused(path, message)


def test_esft_folders_are_read(tmp_path: Path) -> None:
    law = esft_folder(tmp_path / "law", [IDS[:5], IDS[5:]], [WEIGHTS[:5], WEIGHTS[5:]])
    intent = esft_folder(tmp_path / "intent", [IDS], [WEIGHTS])
    made = trace_of([law, intent], name="esft")
    np.testing.assert_array_equal(made.ids_TLK, np.concatenate([IDS, IDS]))
    np.testing.assert_array_equal(made.weights_TLK[:9], WEIGHTS)  # type: ignore[index]
    assert made.sequence_tokens_S.tolist() == made.prompt_tokens_S.tolist() == [5, 4, 9]
    assert [made.domains[d] for d in made.domain_S] == ["law", "law", "intent"]
    files = trace_of(sorted(law.iterdir()), name="esft")
    assert files.tokens == 9
    refused(law, "give --top-k", About(model="?", experts=8))
    file = law / "expert_weights_2.txt"
    sound = file.read_text()
    for text, message in (
        (sound.split("\n")[0], "as many lines in every layer's file"),
        (sound.replace("\t\t", "\t", 1), "must be numbers with tabs between"),
        (sound.replace("0.", "zero", 1), "must be numbers with tabs between"),
        (sound.replace("0.", "nan\t0.", 1), "must have 2 ids and weights a token"),
        ("9" + sound, "ids must be 0 to 7"),
    ):
        file.write_text(text)
        refused(law, message)


def test_moe_balance_lines_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "gpqa.jsonl", balance_lines([IDS[:5], IDS[5:]]))
    made = trace_of(path, DECODED, "moe-balance")
    np.testing.assert_array_equal(made.ids_TLK, IDS)
    assert made.sequence_tokens_S.tolist() == [5, 4]
    assert made.layers_L.tolist() == list(MOE_LAYERS)
    refused(path, "give --phase prefill or decode")
    line = json.loads(path.read_text().split("\n")[0])
    for changes, message in (
        ({"layer": -1}, "must have a layer below"),
        ({"batch_id": None, "request_id": None}, "must have a batch_id or request_id"),
        ({"topk_experts": [[1, 2], [3]]}, "must have tables of numbers"),
        ({"topk_experts": [[1.5, 2.0]]}, "must have tables of numbers"),
        ({"topk_experts": "1"}, "must have tables of numbers"),
        ({"topk_weights": [["a"]]}, "must have tables of numbers"),
        ({"topk_weights": [[float("nan")] * 2] * 5}, "must be finite"),
    ):
        refused(write(path, json.dumps({**line, **changes})), message, DECODED)
    refused(write(path, json.dumps(line) + "\n" + json.dumps(line)), "each layer once", DECODED)
    refused(write(path, json.dumps(line) + "\n[1]"), "must hold an object in line 2", DECODED)
    refused(write(path, json.dumps(line) + "\n{"), "must be JSON in line 2", DECODED)


# Telling formats apart


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"hello", b"{}", b"[", b"PK\x03\x04", b"\x00" * 5000, b"a,b\n1,2\n"):
        refused(write(tmp_path / "f", content), "")
    refused(tmp_path, "must be a recording in one of the formats npz, sglang-recorder")
    refused(tmp_path / "nothing", "must be an existing file")
    with pytest.raises(InputError, match="must be one of npz"):
        import_recording(write(tmp_path / "f", b"{}"), TOY, "pt")


def test_every_truncation_is_refused_or_sound(tmp_path: Path) -> None:
    """Cut anywhere, a file gives an InputError or a smaller recording, never another exception."""
    _, passes = recorded_requests()
    write_torch(tmp_path / "r.pt", sglang_dump(passes, MAP_LP))
    write(tmp_path / "i.gguf", imatrix(COUNTS_LE, 1, 100))
    write(tmp_path / "n.json", RESPONSES["vllm npy"])
    write(tmp_path / "c.csv", narrow_csv(IDS, WEIGHTS, range(9)))
    write(tmp_path / "f.json", fingerprint(IDS, WEIGHTS, "law"))
    write(tmp_path / "b.jsonl", balance_lines([IDS]))
    export_trace(own_trace(), tmp_path / "t.npz")
    for path in sorted(tmp_path.iterdir()):
        sound = path.read_bytes()
        import_recording(path, about_model("toy", experts=8, top_k=2, phase="decode"))
        for cut in np.linspace(0, len(sound) - 1, 23).astype(int).tolist():
            path.write_bytes(sound[:cut])
            with suppress(InputError):
                import_recording(path, DECODED)


def test_formats_have_names_of_their_own() -> None:
    names = [one.name for one in formats.FORMATS]
    assert len(set(names)) == len(names)


def test_a_shipped_model_fills_in_its_shape() -> None:
    about = about_model("deepseek-v2-lite", phase=None, experts=None)
    assert (about.experts, about.top_k, about.layers) == (64, 6, 27)
    assert about.moe_layers == tuple(range(1, 27))
    assert about_model("a model of ours", top_k=3).top_k == 3
    assert about_model("deepseek-v2-lite", top_k=3).top_k == 3
    with pytest.raises(InputError, match="must be 1 to 65536"):
        About(experts=10**9)
