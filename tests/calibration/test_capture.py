"""Captures as a person runs them: prompts, files on disk, interruptions, what is refused."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from calibration.capture.prompts import read_prompts
from calibration.capture.spool import Shape, Spool, spool_folder
from moesim.cli import main
from moesim.errors import InputError
from moesim.routing import RoutingTrace

SHAPE = Shape((1, 3), 8, 2, weighted=True)


def rows(tokens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = rng.random((tokens, 2, 8)).argsort(axis=-1)[..., :2].astype(np.uint8)
    return ids, rng.random(ids.shape).astype(np.float16)


# --- prompts


def write(path: Path, *lines: Any) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_prompts_come_with_their_domains(tmp_path: Path) -> None:
    mixed = write(
        tmp_path / "mixed.jsonl",
        {"prompt": "Why?", "domain": "law"},
        "",
        {"text": "x = 1", "kind": "ignored"},
        {"tokens": [3, 4], "domain": "law"},
        {"messages": [{"role": "user", "content": "Hi", "name": "ignored"}], "domain": "chat"},
    )
    plain = write(tmp_path / "poems.txt", "Roses are red", " violets ")
    read = read_prompts([mixed, plain], None)
    assert [prompt.domain for prompt in read.prompts] == [
        *("law", "mixed", "law", "chat"),
        *("poems", "poems"),
    ]
    assert read.domains == ("law", "mixed", "chat", "poems")
    assert read.prompts[2].content == (3, 4)
    assert read.prompts[3].content == ({"role": "user", "content": "Hi"},)
    assert read.prompts[5].content == " violets "
    assert read.prompts[2].where == f"{mixed}:4"
    assert read_prompts([mixed, plain], "all").domains == ("law", "all", "chat")
    few = read_prompts([mixed, plain], None, "domain", limit=1)
    assert [prompt.content for prompt in few.prompts] == ["Why?", "Roses are red"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "must be a JSON object"),
        ("[1]", "must be a JSON object"),
        ('{"domain": "x"}', "must have one of prompt, text, messages, tokens"),
        ('{"prompt": "a", "text": "b"}', "must have one of"),
        ('{"prompt": 3}', "prompt must be text"),
        ('{"prompt": ""}', "prompt must be text"),
        ('{"prompt": "a", "domain": 3}', "domain must be printable text"),
        ('{"prompt": "a", "domain": "\\u001b[31m"}', "domain must be printable text"),
        ('{"tokens": [1, -2]}', "tokens must be token ids"),
        ('{"tokens": [true]}', "tokens must be token ids"),
        ('{"tokens": []}', "must be a list that is not empty"),
        ('{"messages": [{"role": "user"}]}', "must be messages with role and content"),
        ("[" * 100_000, "must be a JSON object"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", {"prompt": "fine"}, line)
    with pytest.raises(InputError, match=message) as refused:
        read_prompts([path], None)
    assert f"{path}:2" in str(refused.value)


def test_files_that_are_no_prompts_are_refused(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("\n \n", encoding="utf-8")
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (empty, binary, tmp_path / "absent.txt", tmp_path):
        with pytest.raises(InputError):
            read_prompts([path], None)


# --- the spool


def test_a_spool_becomes_the_trace(tmp_path: Path) -> None:
    out = tmp_path / "made.safetensors"
    spool = Spool.start(out, {"model": "toy"}, resume=False)
    first, second = rows(5), rows(3, seed=1)
    spool.append(*first, [(2, 2, 0), (3, 1, 1)], SHAPE)
    spool.append(*second, [(3, 3, 0)], SHAPE)
    spool.trace(("law", "code"), "toy", {"model": "toy"}).save(out)
    spool.remove()
    trace = RoutingTrace.open(out)
    np.testing.assert_array_equal(trace.ids_TLK, np.concatenate([first[0], second[0]]))
    assert trace.weights_TLK is not None
    np.testing.assert_array_equal(trace.weights_TLK, np.concatenate([first[1], second[1]]))
    assert trace.sequence_start_S1.tolist() == [0, 2, 5, 8]
    assert trace.prompt_tokens_S.tolist() == [2, 1, 3]
    assert trace.domain_S.tolist() == [0, 1, 0]
    assert trace.layers_L.tolist() == [1, 3]
    assert not spool_folder(out).exists()


def test_what_an_interruption_left_half_written_is_cut_off(tmp_path: Path) -> None:
    out, kept = tmp_path / "made.safetensors", rows(4)
    spool = Spool.start(out, {"model": "toy"}, resume=False)
    spool.append(*kept, [(4, 2, 0)], SHAPE)
    folder = spool_folder(out)
    for name, leftover in (("ids", b"\x07" * 9), ("weights", b"\x07" * 3)):
        with (folder / name).open("ab") as file:
            file.write(leftover)
    with (folder / "sequences.csv").open("a", encoding="ascii") as file:
        file.write("3,")
    again = Spool.start(out, {"model": "toy"}, resume=True)
    assert again.sequences == [(4, 2, 0)]
    more = rows(2, seed=1)
    again.append(*more, [(2, 0, 0)], SHAPE)
    trace = again.trace(("law",), "toy", {})
    np.testing.assert_array_equal(trace.ids_TLK, np.concatenate([kept[0], more[0]]))


def test_a_spool_is_not_resumed_by_mistake(tmp_path: Path) -> None:
    out = tmp_path / "made.safetensors"
    spool = Spool.start(out, {"model": "toy", "batch": "8"}, resume=False)
    spool.append(*rows(4), [(4, 2, 0)], SHAPE)
    with pytest.raises(InputError, match=r"unfinished capture.*give --resume"):
        Spool.start(out, {"model": "toy", "batch": "8"}, resume=False)
    with pytest.raises(InputError, match="needs the same batch as before"):
        Spool.start(out, {"model": "toy", "batch": "4"}, resume=True)
    with pytest.raises(InputError, match="needs the same model"):
        spool.append(*rows(1), [(1, 1, 0)], Shape((0, 3), 8, 2, weighted=True))
    (spool_folder(out) / "ids").write_bytes(b"")
    with pytest.raises(InputError, match="must have the 4 rows"):
        Spool.start(out, {"model": "toy", "batch": "8"}, resume=True)


def test_a_spool_without_sequences_is_begun_anew(tmp_path: Path) -> None:
    out = tmp_path / "made.safetensors"
    Spool.start(out, {"model": "toy"}, resume=False)
    assert Spool.start(out, {"model": "another"}, resume=False).sequences == []


def test_impossible_choices_are_refused_before_they_are_written(tmp_path: Path) -> None:
    spool = Spool.start(tmp_path / "made.safetensors", {}, resume=False)
    ids, weights = rows(2)
    twice, broken = ids.copy(), weights.copy()
    twice[1, 0] = 5
    broken[0, 0, 0] = np.nan
    for bad in ((twice, weights), (ids, broken)):
        with pytest.raises(InputError, match=r"ids\[1\]|weights\[0\]"):
            spool.append(*bad, [(2, 2, 0)], SHAPE)
    with pytest.raises(InputError, match="no finished sequence"):
        spool.trace(("law",), "toy", {})


# --- the command


def test_without_torch_the_command_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent(monkeypatch, "torch")
    path = write(tmp_path / "p.txt", "Hi")
    status = main(["calibrate", "capture", "m", str(path), "-o", str(tmp_path / "t.safetensors")])
    assert status == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'moesim[calibration]'" in error


def absent(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real: Callable[..., Any] = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == package:
            raise ImportError(f"No module named {package!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-MoE with a byte-level tokenizer and a chat template."""
    reason = "capture needs torch and transformers (extra calibration)"
    torch = pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        norm_topk_prob=True,
        initializer_range=0.3,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    texts = [("law", "the court"), ("code", "x = 1"), ("law", "appeal"), ("code", "def f(): pass")]
    lines = [{"prompt": text, "domain": domain} for domain, text in texts]
    return write(tmp_path / "prompts.jsonl", *lines)


def run(*arguments: object) -> int:
    return main(["calibrate", "capture", *map(str, arguments)])


def test_the_command_writes_a_trace_and_says_where_it_is_from(
    model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.safetensors"
    options = ("--output-tokens", 5, "--ignore-end", "--batch", 3, "--overhead", "--json")
    assert run(model, prompts, "-o", out, *options) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    told = json.loads(captured.out)
    trace = RoutingTrace.open(out)
    assert trace.prompt_tokens_S.tolist() == [9, 5, 6, 13]
    assert trace.sequence_tokens_S.tolist() == [13, 9, 10, 17]
    assert trace.domains == ("law", "code")
    assert trace.weights_TLK is not None
    np.testing.assert_allclose(trace.weights_TLK.sum(axis=2, dtype=np.float32), 1, atol=2e-3)
    assert (told["tokens"], told["captured_tokens"], told["complete"]) == (49, 49, True)
    assert told["overhead"]["plain_s"] > 0
    about = trace.provenance
    assert about["decoding"] == "up to 5 tokens, greedy, end of text ignored"
    assert "4 prompts, SHA-256 " in about["prompts"]
    assert about["prompt_files"] == "prompts.jsonl"
    assert {"config_sha256", "dtype", "device", "software", "captured"} <= set(about)
    assert not spool_folder(out).exists()


def test_sampled_decoding_is_repeatable_and_depends_on_the_seed(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    def ids(name: str, *more: object) -> np.ndarray:
        out = tmp_path / f"{name}.safetensors"
        options = ("--output-tokens", 9, "--ignore-end", "--no-weights", *more)
        assert run(model, prompts, "-o", out, *options) == 0
        trace = RoutingTrace.open(out)
        assert trace.weights_TLK is None
        return trace.ids_TLK

    hot = ("--temperature", 1.0)
    np.testing.assert_array_equal(ids("a", *hot, "--seed", 1), ids("b", *hot, "--seed", 1))
    assert (ids("c", *hot, "--seed", 2) != ids("d", *hot, "--seed", 1)).any()


def test_a_sequence_ends_with_its_end_of_text(model: Path, tmp_path: Path) -> None:
    from calibration.capture.loading import load_model
    from calibration.capture.run import Decoding, capture
    from calibration.capture.taps import find_taps

    torch = pytest.importorskip("torch")
    loaded = load_model(str(model), "cpu", "float32")
    read = read_prompts([write(tmp_path / "p.txt", "ab", "abcdef")], None)
    head = loaded.model.lm_head.weight
    with torch.no_grad():
        head.zero_()  # all logits alike: greedy takes token 0, the end
    out = tmp_path / "t.safetensors"
    made = capture(loaded, read, out, decoding=Decoding(tokens=9))
    assert made.trace.sequence_tokens_S.tolist() == [2, 6]
    made = capture(loaded, read, out, decoding=Decoding(tokens=9, ignore_end=True))
    assert made.trace.sequence_tokens_S.tolist() == [2 + 8, 6 + 8]
    module = find_taps(loaded.model)[0].module
    assert not module._forward_pre_hooks


def test_ctrl_c_keeps_what_is_done_and_resume_gives_the_same_trace(
    model: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import calibration.capture.run as runs

    whole, out = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    options = ("--output-tokens", 4, "--ignore-end", "--batch", 1, "--temperature", 0.8)
    assert run(model, prompts, "-o", whole, *options) == 0
    real, calls = runs.run_batch, []

    def stopped(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(runs, "run_batch", stopped)
    assert run(model, prompts, "-o", out, *options) == 130
    monkeypatch.setattr(runs, "run_batch", real)
    partial = RoutingTrace.open(out)
    assert partial.sequences == 2
    assert partial.provenance["unfinished"] == "2 of 4 prompts"
    assert run(model, prompts, "-o", out, *options) == 2
    assert "give --resume" in capsys.readouterr().err
    assert run(model, prompts, "-o", out, *options, "--resume") == 0
    resumed, wanted = RoutingTrace.open(out), RoutingTrace.open(whole)
    np.testing.assert_array_equal(resumed.ids_TLK, wanted.ids_TLK)
    np.testing.assert_array_equal(resumed.sequence_start_S1, wanted.sequence_start_S1)
    assert "unfinished" not in resumed.provenance
    assert not spool_folder(out).exists()


def test_chats_go_through_the_models_template(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    chat = write(
        tmp_path / "chat.jsonl",
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"tokens": [5, 6, 7]},
        {"prompt": "Hi"},
    )
    assert run(model, chat, "-o", out) == 0
    assert RoutingTrace.open(out).prompt_tokens_S.tolist() == [len("[user]Hi"), 3, 2]
    assert run(model, chat, "-o", out, "--chat", "--prompt-tokens", 6) == 0
    assert RoutingTrace.open(out).prompt_tokens_S.tolist() == [6, 3, 6]


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ({"tokens": [9999]}, (), "must have tokens below the model's"),
        ({"prompt": "x" * 100}, (), "must fit in the model's context of 64 tokens"),
        ({"prompt": "x" * 60}, ("--output-tokens", "6"), "context of 64 tokens with its output"),
        ({"prompt": "x"}, ("--device", "cuda:9"), "torch finds no CUDA GPU"),
        ({"prompt": "x"}, ("--device", "teapot"), "--device must be"),
        ({"prompt": "x"}, ("--dtype", "int3"), "--dtype must be one of"),
        ({"prompt": "x"}, ("--top-p", "2"), "top-p"),
    ],
)
def test_what_the_command_refuses(
    model: Path,
    tmp_path: Path,
    line: dict[str, Any],
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "cuda:9" in options and __import__("torch").cuda.is_available():
        pytest.skip("has a CUDA GPU")
    path = write(tmp_path / "p.jsonl", line)
    assert run(model, path, "-o", tmp_path / "t.safetensors", *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_models_that_cannot_be_captured_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    path, out = write(tmp_path / "p.jsonl", {"tokens": [1]}), tmp_path / "t.safetensors"
    dense, pickled, foreign = tmp_path / "dense", tmp_path / "pickled", tmp_path / "foreign"
    config = transformers.Qwen3Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    made = transformers.Qwen3ForCausalLM(config)
    made.save_pretrained(dense)
    config.save_pretrained(pickled)
    torch.save(made.state_dict(), pickled / "pytorch_model.bin")
    foreign.mkdir()
    (foreign / "config.json").write_text(
        json.dumps({"model_type": "nobody", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}),
        encoding="utf-8",
    )
    torn = tmp_path / "torn"
    shutil.copytree(model, torn)
    tensors = load_file(torn / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, torn / "model.safetensors", {"format": "pt"})
    (foreign / "evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    expected = {
        dense: "must have MoE layers",
        pickled: "safetensors",
        foreign: "model_type 'nobody'",
        torn: "lacks the weights ['model.norm.weight']",
    }
    for folder, message in {**expected, tmp_path / "absent": "cannot be loaded"}.items():
        assert run(folder, path, "-o", out) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
    assert run(model, path, "-o", tmp_path / "t.txt") == 2
    assert "must end in .safetensors" in capsys.readouterr().err
