"""Launch commands of documentation and recipes, and of people who mean harm."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moesim.cli import main
from moesim.errors import InputError
from moesim.launch import Reading, read_commands
from moesim.launch.checkpoints import find_checkpoint
from moesim.launch.flags import flag_table
from moesim.launch.machines import cluster_of
from moesim.launch.words import split_command
from moesim.pools import check
from moesim.scenario import Scenario

CASES = yaml.safe_load(
    (Path(__file__).resolve().parents[1] / "fixtures" / "launch_commands.yaml").read_text("utf-8")
)
WORKLOAD = {"preset": "chat", "arrivals": {"closed_loop": {"concurrency": 64}}, "requests": 64}
GPU = "h200-sxm"


def read(*commands: str, gpu: str = GPU, **more: Any) -> Reading:
    return read_commands(commands, gpu, **more)


def deployment(*commands: str, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = read(*commands, **more).scenario["deployment"]
    return found


def of_case(case: dict[str, Any], folder: Path) -> Reading:
    files = []
    for number, options in enumerate(case.get("options", ())):
        files.append(folder / f"{number}.yaml")
        files[-1].write_text(options, encoding="utf-8")
    return read_commands(case["commands"], case["gpu"], files, case.get("model"))


# Real commands


@pytest.mark.parametrize("case", CASES["read"], ids=lambda case: case["id"])
def test_a_command_of_the_documentation(case: dict[str, Any], tmp_path: Path) -> None:
    reading = of_case(case, tmp_path)
    scenario = {key: value for key, value in reading.scenario.items() if key != "name"}
    assert scenario == case["scenario"]
    assert [flag for flag, _ in reading.understood] == case["understood"]
    changes = {True: case["changes_serving"], False: case["ignored"]}
    for changing, flags in changes.items():
        assert [i.flag for i in reading.ignored if i.changes_serving is changing] == flags
    assert len(reading.notes) == case["notes"]


@pytest.mark.parametrize("case", CASES["read"], ids=lambda case: case["id"])
def test_what_is_read_can_be_simulated(case: dict[str, Any], tmp_path: Path) -> None:
    scenario = Scenario.parse({**of_case(case, tmp_path).scenario, "workload": WORKLOAD})
    if "check" in case:
        with pytest.raises(InputError) as refused:
            check(scenario)
        assert str(refused.value) == case["check"]
    else:
        check(scenario)


@pytest.mark.parametrize("case", CASES["refused"], ids=lambda case: case["id"])
def test_a_command_that_would_be_simulated_as_something_else(case: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        read(*case["commands"], gpu=case["gpu"])
    assert str(refused.value) == case["error"]


def test_the_commands_cover_engines_models_and_ways_of_serving() -> None:
    cases = CASES["read"]
    commands = "\n".join(command for case in cases for command in case["commands"])
    assert len(cases) >= 25
    engines = [case["scenario"]["deployment"]["engine"] for case in cases]
    assert all(engines.count(engine) >= 7 for engine in ("vllm", "sglang", "trtllm"))
    for model in ("R1", "V3", "Qwen3-235B", "Qwen3-30B", "gpt-oss", "Mixtral", "Kimi-K2"):
        assert model in commands, model
    for model in ("GLM-4", "Llama-4", "MiniMax"):
        assert model in commands, model
    for flag in ("--nnodes", "--enable-dp-attention", "--enable-eplb", "deepep", "--ep_size"):
        assert flag in commands, flag
    assert any("disaggregation" in case["scenario"]["deployment"] for case in cases)
    assert any("speculation" in case["scenario"]["deployment"] for case in cases)
    assert all("@" in case["source"] for case in [*cases, *CASES["refused"]])


# What flags mean together


def test_vllm_splits_experts_over_all_ranks_unless_told_to_spread_them() -> None:
    split = deployment("vllm serve openai/gpt-oss-120b -tp 2 -dp 4")["parallelism"]
    assert split == {"attention_tp": 2, "attention_dp": 4}
    split = deployment("vllm serve openai/gpt-oss-120b -tp 2 -dp 4 -ep")["parallelism"]
    assert split == {"attention_tp": 2, "attention_dp": 4, "expert_parallel": 8}


def test_data_parallel_ranks_of_a_dense_model_are_replicas() -> None:
    reading = read("vllm serve meta-llama/Llama-3.1-8B-Instruct -tp 2 -dp 4")
    assert reading.scenario["deployment"] == {
        "engine": "vllm",
        "parallelism": {"attention_tp": 2},
        "replicas": 4,
    }
    assert reading.scenario["cluster"] == {"gpu": GPU, "gpus_per_node": 8, "nodes": 1}


def test_data_parallelism_of_sglang_is_replicas_without_data_parallel_attention() -> None:
    command = "python -m sglang.launch_server --model deepseek-ai/DeepSeek-V3 --tp 8 --dp 2"
    found = read(command)
    assert found.scenario["deployment"]["replicas"] == 2
    assert found.scenario["cluster"]["nodes"] == 2
    found = read(command + " --enable-dp-attention")
    assert "replicas" not in found.scenario["deployment"]
    assert found.scenario["deployment"]["parallelism"] == {"attention_tp": 4, "attention_dp": 2}
    assert found.scenario["cluster"]["nodes"] == 1


def test_sglang_divides_what_it_is_given_among_attention_ranks() -> None:
    command = (
        "python -m sglang.launch_server --model deepseek-ai/DeepSeek-V3 --tp 8 --dp 8 "
        "--max-running-requests 1024 --chunked-prefill-size 32768 --max-prefill-tokens 8192"
    )
    alone = deployment(command)["batching"]
    assert (alone["max_requests"], alone["token_budget"]) == (1024, 32768)
    shared = deployment(command + " --enable-dp-attention")["batching"]
    assert (shared["max_requests"], shared["token_budget"]) == (128, 4096)
    assert shared["max_prefill_tokens"] == 8192


def test_chunks_that_are_switched_off_in_sglang() -> None:
    command = "python -m sglang.launch_server --model openai/gpt-oss-20b --chunked-prefill-size -1"
    reading = read(command)
    assert reading.scenario["deployment"]["batching"]["token_budget"] == 16_384
    assert "cut all the same" in " ".join(reading.notes)


def test_options_of_a_file_stand_below_the_flags_of_vllm_and_above_those_of_tensorrt_llm(
    tmp_path: Path,
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("max-num-seqs: 16\nmax-num-batched-tokens: 512\n", encoding="utf-8")
    found = deployment(f"vllm serve openai/gpt-oss-20b --max-num-seqs 32 --config {file}")
    assert found["batching"]["max_requests"] == 32
    assert found["batching"]["token_budget"] == 512
    file.write_text("max_batch_size: 16\nkv_cache_config: {dtype: fp8}\n", encoding="utf-8")
    reading = read(f"trtllm-serve openai/gpt-oss-20b --max_batch_size 32 --config {file}")
    assert reading.scenario["deployment"]["batching"]["max_requests"] == 16
    assert reading.scenario["precision"] == {"kv_cache": "fp8"}
    assert "--max_batch_size 32" in [each.flag for each in reading.ignored]


def test_an_unknown_option_of_a_file_is_refused_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("kv_cache_config: {free_gpu_memory_fractoin: 0.5}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"^kv_cache_config\.free_gpu_memory_fractoin is no flag"):
        read(f"trtllm-serve openai/gpt-oss-20b --config {file}")


def test_slots_of_tensorrt_llm_are_redundant_beyond_the_experts(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    text = (
        "enable_attention_dp: true\nmoe_config: {backend: WIDEEP, load_balancer: {num_slots: %d}}"
    )
    file.write_text(text % 288, encoding="utf-8")
    command = "trtllm-serve deepseek-ai/DeepSeek-R1 --tp_size 16 --ep_size 16"
    found = deployment(command, options=[file], gpu="gb200-nvl72")
    assert found["placement"] == {"policy": "eplb", "redundant_experts": 32}
    assert found["exchange"] == "nvlink-one-sided"  # one NVLink domain
    assert deployment(command, options=[file])["exchange"] == "deepep"  # two nodes of 8
    file.write_text(text % 255, encoding="utf-8")
    with pytest.raises(InputError, match="num_slots must be at least the model's 256 experts"):
        read(command, options=[file])


def test_a_pool_may_leave_open_which_of_the_two_it_is() -> None:
    either = (
        "vllm serve openai/gpt-oss-20b -tp {} --kv-transfer-config "
        '\'{{"kv_connector":"NixlConnector","kv_role":"kv_both"}}\''
    )
    pools = deployment(either.format(4), either.format(2))["disaggregation"]
    assert pools["prefill"]["parallelism"] == {"attention_tp": 4}
    assert pools["decode"]["parallelism"] == {"attention_tp": 2}
    alone = read(either.format(4))
    assert "disaggregation" not in alone.scenario["deployment"]
    assert "simulated as both at once" in alone.notes[0]


@pytest.mark.parametrize(
    ("second", "rule"),
    [
        ("--disaggregation-mode prefill", "both are prefill"),
        ("", "must be given once, or for a prefill and a decode pool"),
        ("--disaggregation-mode decode --kv-cache-dtype fp8_e4m3", "one checkpoint with one KV"),
    ],
)
def test_two_commands_that_are_no_two_pools(second: str, rule: str) -> None:
    base = "python -m sglang.launch_server --model-path openai/gpt-oss-20b"
    with pytest.raises(InputError, match=rule):
        read(f"{base} --disaggregation-mode prefill", f"{base} {second}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deepseek-ai/DeepSeek-R1", ("deepseek-v3", None, None)),
        ("nvidia/DeepSeek-R1-0528-NVFP4-v2", ("deepseek-v3", "bf16", "nvfp4")),
        ("unsloth/DeepSeek-R1-0528-BF16", ("deepseek-v3", "bf16", None)),
        ("QuixiAI/DeepSeek-R1-0528-AWQ", ("deepseek-v3", "int4", None)),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", ("qwen3-235b-a22b", "fp8", None)),
        ("Qwen/Qwen3-30B-A3B-Thinking-2507", ("qwen3-30b-a3b", None, None)),
        ("nvidia/Qwen3-30B-A3B-NVFP4", ("qwen3-30b-a3b", "bf16", "nvfp4")),
        ("moonshotai/Kimi-K2-Instruct-0905", ("kimi-k2", None, None)),
        ("moonshotai/Kimi-K2-Thinking", ("kimi-k2", "bf16", "int4")),
        ("openai/gpt-oss-120b", ("gpt-oss-120b", None, None)),
        ("amd/gpt-oss-120b-w-mxfp4-a-fp8", None),  # the endings together say what is not stored
        ("zai-org/GLM-4.5-Air-FP8", None),  # another model
        ("deepseek-ai/DeepSeek-V3.2-Exp", None),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct", None),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", ("llama-4-scout", None, None)),
        ("nvidia/Llama-3.3-70B-Instruct-FP8", ("llama-3.1-70b", "fp8", None)),
    ],
)
def test_checkpoints_by_name(
    name: str, expected: tuple[str, str | None, str | None] | None
) -> None:
    if expected is None:
        with pytest.raises(InputError, match="no checkpoint that moesim knows"):
            find_checkpoint(name, None)
    else:
        found = find_checkpoint(name, None)
        assert (found.model, found.weights, found.experts) == expected


def test_a_flag_asks_for_another_format_than_the_checkpoint_s() -> None:
    assert find_checkpoint("Qwen/Qwen3-235B-A22B", "fp8").precision() == {"weights": "fp8"}
    assert find_checkpoint("openai/gpt-oss-120b", "fp8").precision() == {}  # stays in four bits
    assert find_checkpoint("deepseek-ai/DeepSeek-V3", "fp8").precision() == {}  # published so


def test_nodes_as_they_usually_are() -> None:
    assert cluster_of(GPU, 16, None) == {"gpu": GPU, "gpus_per_node": 8, "nodes": 2}
    assert cluster_of(GPU, 2, None) == {"gpu": GPU, "gpus_per_node": 2, "nodes": 1}
    assert cluster_of(GPU, 16, 4) == {"gpu": GPU, "gpus_per_node": 4, "nodes": 4}
    rack = {"gpu": "gb200-nvl72", "gpus_per_node": 4, "nodes": 18}
    assert cluster_of("gb200-nvl72", 72, None) == rack
    with pytest.raises(InputError, match="at most 16384 GPUs"):
        cluster_of(GPU, 20_000, None)


# How commands are written


BASE = "vllm serve openai/gpt-oss-20b"


@pytest.mark.parametrize(
    "written",
    ["--max-num-seqs 7", "--max-num-seqs=7", "--max_num_seqs 7", "--max_num_seqs=7"],
)
def test_ways_to_write_a_flag(written: str) -> None:
    assert deployment(f"{BASE} {written}")["batching"]["max_requests"] == 7


def test_of_a_flag_given_twice_the_last_counts() -> None:
    reading = read(f"{BASE} --max-num-seqs 7 --port 1 --max_num_seqs=9 --port 2")
    assert reading.scenario["deployment"]["batching"]["max_requests"] == 9
    ignored = {each.flag: each.why for each in reading.ignored}
    assert ignored["--max-num-seqs 7"] == "given again later"
    assert {"--port 1", "--port 2"} <= set(ignored)


def test_parts_of_a_json_flag_add_up() -> None:
    spread = f"{BASE} -dp 4 -ep --enable-eplb --eplb-config.window_size 10"
    found = deployment(f"{spread} --eplb-config.num_redundant_experts 4")
    assert found["placement"] == {"policy": "eplb", "redundant_experts": 4}


def test_comments_continued_lines_assignments_and_where_the_output_goes() -> None:
    text = """
    # what it is
    export A=1 B='two words'
    C=3 nohup vllm serve m \\   # a comment after the backslash
        --x "a;b" \\
        --y 'c `d` $(e)' > log.txt 2>&1 &
    """
    command = split_command(text)
    assert command.environment == {"A": "1", "B": "two words", "C": "3"}
    expected = ("nohup", "vllm", "serve", "m", "--x", "a;b", "--y", "c `d` $(e)")
    assert command.words == expected


# Text of people who mean harm is data


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must be a launch command; it is empty"),
        ("rm -rf /", "must start with vllm serve, python -m sglang.launch_server or trtllm-serve"),
        ("echo vllm serve openai/gpt-oss-20b", "must start with"),
        (f"{BASE} --host $(touch /tmp/x)", r"must not have \$\(...\), which a shell would run"),
        (f"{BASE} --host `id`", "must not have `...`"),
        (f'{BASE} --host "$(id)"', r"must not have \$\(...\)"),
        (f"{BASE}; rm -rf /", "must be one launch command"),
        (f"{BASE} && rm -rf /", "must be one launch command"),
        (f"{BASE}\nrm -rf /", "must be one launch command"),
        (f"{BASE} || true", "must be one command without shell operators"),
        (f"{BASE} | sh", "must be one command without shell operators"),
        (f"({BASE})", "must be one command without shell operators"),
        (f"{BASE} 'open", "cannot be taken apart: no closing quotation"),
        (f'{BASE} "open', "cannot be taken apart: no closing quotation"),
        (f"{BASE} --host \0", "must be printable text"),
        (f"{BASE} --host \x1b[31m", "must be printable text"),
        (f"{BASE} --host " + "x" * 30_000, "must have at most 20000 characters"),
        (f"{BASE} more words", "has a word that no flag takes"),
        (f"{BASE} --tensor-parallel-size", "needs a value"),
        (f"{BASE} --tensor-parallel-size --port 1", "needs a value"),
        (f"{BASE} --tensor-parallel-size -8", "must be a whole number from 1"),
        (f"{BASE} --tensor-parallel-size 8.5", "must be a whole number from 1"),
        (f"{BASE} --tensor-parallel-size=--5", "must be a whole number from 1"),
        (f"{BASE} --tensor-parallel-size $TP", "must be written out"),
        (f"{BASE} --tensor-parallel-size " + "9" * 5000, "must be a whole number from 1"),
        (f"{BASE} -tp 100000 -dp 100000", "must need at most 16384 GPUs"),
        (f"{BASE} --gpu-memory-utilization nan", "must be a number"),
        (f"{BASE} --gpu-memory-utilization 1.5", "must be above 0 and at most 1"),
        (f"{BASE} --gpu-memory-utilization -0.5", "must be above 0 and at most 1"),
        (f"{BASE} --eplb-config {{", "must be JSON"),
        (f"{BASE} --eplb-config []", "must be a JSON object"),
        (f"{BASE} --eplb-config " + "[" * 10_000, "must be JSON"),
        (f"{BASE} --eplb-config.{'a.' * 8000}b 1", "must have at most 10 parts"),
        (f"{BASE}{' &' * 9000}", "must be one command without shell operators"),
        (f"{BASE} --enable-expert-parallel=maybe", "takes no value"),
        (f"{BASE} --tensor-paralel-size 8", "the nearest that it knows is --tensor-parallel-size"),
        (f"{BASE} --{'y' * 5000}", "is no flag that moesim knows of vllm"),
        (f"{BASE} --kv-cache-dtype fp4", "must be one of auto"),
        (f"{BASE} --all2all-backend best", "must be one of naive"),
        (f"{BASE} -dcp 8", "is refused, as it would change what is simulated"),
        (f"{BASE} --cpu-offload-gb 10", "see deployment.expert_offload"),
        (f"{BASE} --no-enable-chunked-prefill", "is not modelled without chunks"),
        (f'{BASE} -sc \'{{"method": "ngram"}}\'', "others draft in other times"),
        (f"{BASE} --config /etc/passwd", "must be a YAML mapping|is not valid YAML"),
        (f"{BASE} --config /dev/zero", "must be an existing file"),
        (f"{BASE} --nnodes 3", None),
        ("vllm serve", "--model is required"),
        ("vllm serve ../../../etc/passwd", "no checkpoint|must be|is not"),
        ("python -m sglang.launch_server --tp 8", "--model-path is required"),
        (
            "python -m sglang.launch_server --model openai/gpt-oss-20b --tp 8 --dp 3 "
            "--enable-dp-attention",
            r"--dp must divide the tensor parallel size \(8\)",
        ),
        ("trtllm-serve openai/gpt-oss-20b --backend tensorrt", "is refused"),
        ("trtllm-serve disaggregated -c x.yaml", "must start with"),
    ],
)
def test_hostile_text_gets_one_clear_line(text: str, rule: str | None) -> None:
    if rule is None:
        rule = "must divide"
    with pytest.raises(InputError, match=rule) as refused:
        read(text)
    assert len(str(refused.value)) < 1200
    assert str(refused.value).isprintable()


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise AssertionError("something was run")

    for name in ("run", "Popen", "call", "check_output"):
        monkeypatch.setattr(subprocess, name, fail)
    monkeypatch.setattr("os.system", fail)
    target = tmp_path / "made"
    read(
        f"{BASE} --host '$(touch {target})' --port '`touch {target}`' --api-key 'a; touch {target}'"
    )
    assert not target.exists()


def test_secrets_are_not_repeated() -> None:
    server = "docker run -e KEY=abc vllm/vllm-openai:v1 --api-key=abc openai/gpt-oss-20b"
    reading = read(f"HF_TOKEN=hf_abc {server}")
    assert reading.scenario["model"] == "gpt-oss-20b"
    assert "abc" not in json.dumps(reading.plain())


@given(st.text(max_size=200) | st.lists(st.sampled_from([*flag_table("vllm").by_name, "8", "x"])))
def test_any_text_is_read_or_refused(tail: str | list[str]) -> None:
    words = tail if isinstance(tail, str) else " ".join(tail)
    refusal = ""
    try:
        read(f"{BASE} {words}")
    except InputError as refused:
        refusal = str(refused)
    assert refusal.isprintable()


# Tables


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_tables_are_sound(engine: str) -> None:
    table = flag_table(engine)
    names = [name for flag in table.flags for name in flag.names]
    assert len(names) == len(set(names))
    for flag in table.flags:
        assert flag.effect in ("understood", "no-effect", "not-modelled", "refused"), flag
        assert flag.takes in ("switch", "boolean", "value", "values", "json"), flag
        assert bool(flag.fields) <= (flag.effect == "understood"), flag
        assert bool(flag.harmless) <= (flag.effect == "refused"), flag
        assert flag.why or flag.effect == "understood", flag
        for name in flag.fields:
            assert _is_field(name), name


@functools.cache
def _schema() -> str:
    return json.dumps(Scenario.model_json_schema())


def _is_field(path: str) -> bool:
    return all(f'"{part}"' in _schema() for part in path.split("."))


# The command line


def run(*arguments: str) -> int:
    return main(["run", *arguments])


SMALL = ("--set", "workload.requests=8", "--set", "routing.trace=balanced", "--gpu", "h100-sxm")


def test_lists_come_before_the_results(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    written = tmp_path / "read.yaml"
    command = f"{BASE} --enforce-eager --host 0.0.0.0 --max-num-seqs 4"
    options = (*SMALL, "--write-scenario", str(written))
    assert run("--from-command", command, *options) == 0
    shown = capsys.readouterr().out
    order = [
        "Read from the launch command (vllm)",
        "deployment.batching.max_requests = 4",
        "Ignored, though a real server would differ",
        "--enforce-eager",
        "Ignored, nothing that is simulated: --host 0.0.0.0",
        "Assumed: 1 node of 1 h100-sxm, 8 chat requests with 64 in flight",
        "All 8 requests completed",
    ]
    assert sorted(order, key=shown.index) == order
    data = yaml.safe_load(written.read_text(encoding="utf-8"))
    scenario = Scenario.parse(data)
    assert scenario.batching.max_requests == 4
    assert scenario.routing.trace == "balanced"

    assert run("--from-command", command, *SMALL, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["launch"]["engine"] == "vllm"
    assert summary["launch"]["scenario"] == data
    fields = {"deployment.batching.max_requests": 4}
    assert {"flag": "--max-num-seqs 4", "fields": fields} in summary["launch"]["understood"]
    eager = {each["flag"]: each["changes_serving"] for each in summary["launch"]["ignored"]}
    assert eager == {"--enforce-eager": True, "--host 0.0.0.0": False}


def test_a_workload_of_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "demand.yaml"
    demand = "{arrivals: all_at_once, requests: 3, prompt: {fixed: 9}, output: {fixed: 2}}"
    file.write_text(f"workload: {demand}\n", encoding="utf-8")
    small = ("--set", "routing.trace=balanced", "--gpu", "h100-sxm")
    assert run("--from-command", BASE, *small, "--workload", str(file)) == 0
    assert "All 3 requests completed" in capsys.readouterr().out


def test_the_command_of_a_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "disaggregated-deepseek-v3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["engine"] == "sglang"
    assert [server["pool"] for server in told["servers"]] == ["prefill", "decode"]
    reading = read(*(server["command"] for server in told["servers"]))
    split = {"attention_dp": 8, "expert_parallel": 8}
    assert reading.scenario["deployment"]["disaggregation"]["decode"]["parallelism"] == split
    assert main(["launch", "demo", "--engine", "trtllm"]) == 0
    assert "trtllm-serve " in capsys.readouterr().out
    assert main(["launch", "demo", "--engine", "llama.cpp"]) == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "SCENARIO is required (or --from-command COMMAND; see: moesim run --help)"),
        (("--from-command", BASE), "--gpu is required with --from-command"),
        (("--from-command", BASE, "--gpu", "h300"), "cluster.gpu must be a known GPU"),
        (("demo", "--from-command", BASE, "--gpu", GPU), "SCENARIO must be left out"),
        (("demo", "--gpu", GPU), "--gpu needs --from-command"),
        (("demo", "--workload", "chat"), "--workload needs --from-command"),
        (("demo", "--write-scenario", "x.yaml"), "--write-scenario needs --from-command"),
        (("--from-command", f"{BASE} --foo", "--gpu", GPU), "--foo is no flag that moesim knows"),
        (("--from-command", BASE, "--gpu", GPU, "--workload", "chta"), "workload.preset"),
        (("--from-command", BASE, "--gpu", GPU, "--workload", "no.yaml"), "--workload must be an"),
        (("--from-command", BASE, "--gpu", GPU, "--set", "model=nothing"), "model must be"),
        (("--from-command", BASE, "--gpu", GPU, "--options", "no.yaml"), "--options must be an"),
    ],
)
def test_refusals_of_the_command_line(
    arguments: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("moesim: error: ")
    assert line in error
    assert error.count("\n") == 1
