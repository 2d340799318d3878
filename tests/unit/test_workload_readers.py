"""Readers of public traces: small files in each format, bad files, and the real ones."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.workload import read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01+00:00,2399,6
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 27, "input_length": 1024, "output_length": 4, "hash_ids": [46, 2353]}
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,API log
"""
SERVEGEN = """arrived_at_s,input_tokens,output_tokens,reason_ratio
0.25,249,617,0.842
0.5,222,428,0.748
"""
VIDUR = """num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio
3772,54,3826,69.85
2015,156,2171,12.9
"""
VIDUR_TIMED = "arrived_at,num_prefill_tokens,num_decode_tokens\n1.5,10,2\n2.75,20,3\n"
LLMSERVINGSIM = """{"arrival_time_ns": 46926808, "input_toks": 2361, "output_toks": 532}
{"arrival_time_ns": 347938951, "input_toks": 1128, "output_toks": 772}
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "trace"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "name", "arrival_ns", "prompt", "output"),
    [
        (AZURE, "azure", [0, 4_314_579_000, 4_541_877_000], [374, 396, 879], [44, 109, 55]),
        (AZURE_2024, "azure", [0, 990_070_000], [2162, 2399], [5, 6]),
        (MOONCAKE, "mooncake", [0, 27_000_000], [1100, 1024], [52, 4]),
        (BURSTGPT, "burstgpt", [0, 40_000_000_000], [472, 1087], [18, 1]),
        (SERVEGEN, "servegen", [0, 250_000_000], [249, 222], [617, 428]),
        (VIDUR, "vidur", None, [3772, 2015], [54, 156]),
        (VIDUR_TIMED, "vidur", [0, 1_250_000_000], [10, 20], [2, 3]),
        (LLMSERVINGSIM, "llmservingsim", [0, 301_012_143], [2361, 1128], [532, 772]),
    ],
)
@pytest.mark.parametrize("variant", ["named", "auto", "crlf", "bom", "no final newline"])
def test_formats(
    tmp_path: Path,
    text: str,
    name: str,
    arrival_ns: list[int] | None,
    prompt: list[int],
    output: list[int],
    variant: str,
) -> None:
    if variant == "crlf":
        text = text.replace("\n", "\r\n")
    if variant == "bom":
        text = "\ufeff" + text
    if variant == "no final newline":
        text = text.rstrip("\n")
    trace = read_trace(written(tmp_path, text), name if variant == "named" else "auto")  # type: ignore[arg-type]
    assert trace.format == name
    times = trace.arrival_ns_T
    assert (None if times is None else times.tolist()) == arrival_ns
    assert trace.prompt_tokens_T.tolist() == prompt
    assert trace.output_tokens_T.tolist() == output


def test_mooncake_blocks_are_kept_with_their_rows(tmp_path: Path) -> None:
    prefixes = read_trace(written(tmp_path, MOONCAKE)).prefixes
    assert prefixes.block_tokens == 512
    assert prefixes.start_N1.tolist() == [0, 3, 5]
    assert prefixes.ids_M.tolist() == [0, 1, 2, 0, 3]


def test_rows_without_output_count_as_one_token(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, BURSTGPT))
    assert trace.notes == ("1 rows without output tokens count as one output token",)


def test_skip_and_limit(tmp_path: Path) -> None:
    path = written(tmp_path, AZURE)
    assert read_trace(path, skip=1, limit=1).prompt_tokens_T.tolist() == [396]
    assert read_trace(path, skip=1).arrival_ns_T.tolist() == [0, 227_298_000]  # type: ignore[union-attr]


def test_skipped_rows_are_not_judged(tmp_path: Path) -> None:
    path = written(tmp_path, SERVEGEN.replace("249", "many"))
    assert read_trace(path, skip=1).prompt_tokens_T.tolist() == [222]


def test_blank_lines_do_not_count(tmp_path: Path) -> None:
    assert len(read_trace(written(tmp_path, "\n" + SERVEGEN + "\n\n"))) == 2


def test_unsorted_rows_are_sorted_with_a_note(tmp_path: Path) -> None:
    text = """{"timestamp": 90, "input_length": 512, "output_length": 2, "hash_ids": [7]}
{"timestamp": 10, "input_length": 1024, "output_length": 1, "hash_ids": [8, 9]}
{"timestamp": 90, "input_length": 513, "output_length": 3, "hash_ids": [8]}
"""
    trace = read_trace(written(tmp_path, text))
    assert trace.arrival_ns_T is not None
    assert trace.arrival_ns_T.tolist() == [0, 80_000_000, 80_000_000]
    assert trace.output_tokens_T.tolist() == [1, 2, 3]
    assert trace.prefixes.start_N1.tolist() == [0, 2, 3, 4]
    assert trace.prefixes.ids_M.tolist() == [1, 2, 0, 1]
    assert trace.notes == ("sorted by arrival: 1 rows came earlier than the row before",)


def mooncake_rows(stamps_ms: list[int]) -> str:
    rows = (
        {"timestamp": stamp, "input_length": 600, "output_length": 9, "hash_ids": [n]}
        for n, stamp in enumerate(stamps_ms)
    )
    return "\n".join(json.dumps(row) for row in rows)


def test_three_second_ticks_are_spread(tmp_path: Path) -> None:
    """The Mooncake trap: replayed as recorded, every 3 s would bring a burst."""
    stamps_ms = [0] * 6 + [3000] * 12 + [9000] * 6
    trace = read_trace(written(tmp_path, mooncake_rows(stamps_ms)))
    seconds = trace.arrival_ns_T / 1e9  # type: ignore[operator]
    assert np.allclose(np.diff(seconds[:6]), 0.5)
    assert np.allclose(np.diff(seconds[6:18]), 0.25)
    assert np.all(np.diff(seconds) > 0)
    # every request stays inside the 3 s it was recorded in, up to the common shift to 0
    assert np.array_equal(((seconds + 0.25) // 3 * 3000).astype(int), stamps_ms)
    assert trace.notes == ("arrivals recorded to 3 s were spread evenly inside that time",)
    again = read_trace(written(tmp_path, mooncake_rows(stamps_ms)))
    assert np.array_equal(trace.arrival_ns_T, again.arrival_ns_T)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "stamps_ms",
    [
        [0, 0, 3000, 3000],  # a hand-made burst
        list(range(0, 90_000, 3000)),  # regular, no two together
        [0] * 15 + [1] * 15,  # a fine clock
        [0] * 30,  # one single burst
    ],
)
def test_other_times_are_left_alone(tmp_path: Path, stamps_ms: list[int]) -> None:
    trace = read_trace(written(tmp_path, mooncake_rows(stamps_ms)))
    assert trace.arrival_ns_T is not None
    assert (trace.arrival_ns_T // 1_000_000).tolist() == stamps_ms
    assert trace.notes == ()


HEAD = "arrived_at_s,input_tokens,output_tokens\n0.5,10,10\n"
JSON_ROW = '{"timestamp": 0, "input_length": 600, "output_length": 9, "hash_ids": [0]}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trace must hold at least one request; it is empty"),
        ("\n \n", "trace must hold at least one request; it is empty"),
        (HEAD.splitlines()[0], "trace must hold at least one request; it has none"),
        ("a,b,c\n1,2,3\n", r"must have the columns of a known format .*got 'a, b, c'"),
        (HEAD + "1,-5,10\n", r"trace:3 input_tokens must be a whole number .*got '-5'"),
        (HEAD + "1,5,nan\n", r"trace:3 output_tokens must be a whole number .*got 'nan'"),
        (HEAD + "1,5,inf\n", r"trace:3 output_tokens must be .*got 'inf'"),
        (HEAD + "1,5.5,10\n", r"trace:3 input_tokens must be .*got '5.5'"),
        (HEAD + "1,five,10\n", r"trace:3 input_tokens must be .*got 'five'"),
        (HEAD + "1,,10\n", r"trace:3 input_tokens must be .*got ''"),
        (HEAD + "1,1000000000000,10\n", r"trace:3 input_tokens must be .* 0 to 100000000; got"),
        (HEAD + "soon,5,10\n", r"trace:3 arrived_at_s must be a number from 0 .*got 'soon'"),
        (HEAD + "-1,5,10\n", r"trace:3 arrived_at_s must be a number from 0 .*got '-1'"),
        (HEAD + "1e300,5,10\n", r"trace:3 arrived_at_s must be a number from 0 .*got '1e300'"),
        (HEAD + "1,5\n", r"trace:3 must have 3 columns like the header; got 2"),
        (HEAD + "1,5,6,7\n", r"trace:3 must have 3 columns like the header; got 4"),
        (HEAD + '1,5,"' + "9" * 200_000 + '"\n', "trace:3 is not CSV: field larger"),
        (JSON_ROW + JSON_ROW[:40], r"trace:2 is not a JSON object: .*got '{\"timestamp\""),
        (JSON_ROW + "[1, 2]\n", r"trace:2 must be a JSON object; got '\[1, 2\]"),
        (JSON_ROW + '{"timestamp": 1}\n', r"trace:2 input_length is required"),
        (JSON_ROW.replace("600", "NaN"), r"trace:1 input_length must be .*got nan"),
        (JSON_ROW.replace("600", "null"), r"trace:1 input_length must be .*got 'null'"),
        (JSON_ROW.replace("600", "true"), r"trace:1 input_length must be .*got True"),
        (JSON_ROW.replace("600", "1" + "0" * 400), r"trace:1 input_length must be"),
        (JSON_ROW.replace("600", "1" + "0" * 5000), r"trace:1 is not a JSON object"),
        (JSON_ROW.replace("[0]", "7"), r"trace:1 hash_ids must be a list of whole numbers; got 7"),
        (JSON_ROW.replace("[0]", '["a"]'), r"trace:1 hash_ids must be a list of whole numbers"),
        (
            JSON_ROW.replace("[0]", f"[{2**70}]"),
            r"trace:1 hash_ids must hold numbers of at most 63",
        ),
        (JSON_ROW + "[" * 100_000 + "\n", r"trace:2 is not a JSON object"),
        (
            AZURE + "2023-11-16,1,1\n" + "x,1,1\n",
            r"trace:6 TIMESTAMP must be a time like .*got 'x'",
        ),
        (AZURE + "46,1,1\n", r"trace:5 TIMESTAMP must be a time like .*got '46'"),
        (AZURE + "9999-11-16 18:15:46,1,1\n", r"trace:5 TIMESTAMP must be a time like"),
        (bytes(range(256)) * 100, r"trace must be a text file \(CSV or JSON lines\)"),
        (b"\x1f\x8b\x08\x00junk\xff", r"text file .*\(decompress it first\)"),
        ("{" * 17_000_000, r"trace:1 must be shorter than 16000000 characters"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_trace(written(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_absent_folder_and_huge_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(InputError, match="must be an existing file"):
            read_trace(path)
    huge = tmp_path / "huge.csv"
    with huge.open("wb") as file:
        os.truncate(file.fileno(), 5_000_000_000)  # sparse: takes no space
    with pytest.raises(InputError, match="must be at most 4000000000 bytes"):
        read_trace(huge)


def test_wrong_format_says_which_columns_are_wanted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be JSON lines with timestamp, input_length"):
        read_trace(written(tmp_path, AZURE), "mooncake")
    with pytest.raises(InputError, match="must be auto or one of azure"):
        read_trace(written(tmp_path, AZURE), "sharegpt")  # type: ignore[arg-type]


def test_offsets_of_wall_clocks_are_applied(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 02:00:00+02:00,1,1\n"
    trace = read_trace(written(tmp_path, text + "2024-05-10 00:00:30+00:00,1,1\n"))
    assert trace.arrival_ns_T is not None
    assert trace.arrival_ns_T.tolist() == [0, 30_000_000_000]


@pytest.mark.parametrize(
    ("file", "stats_name"),
    [
        ("AzureLLMInferenceTrace_conv.csv", "azure2023_conv"),
        ("synthetic_trace.jsonl", "mooncake_synthetic"),
        ("arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv", "vidur_arxiv"),
        ("deepseek-r1_generated_hour0_seed7.csv", "servegen_r1_gen_1h"),
        ("sharegpt-qwen3-30b-a3b-300-sps10.lengths.jsonl", "llmss_sharegpt-qwe"),
    ],
)
def test_real_traces_have_their_known_statistics(
    shared_data: Path, file: str, stats_name: str
) -> None:
    """Against statistics of the same files that were computed independently."""
    with (shared_data / "workloads" / "trace_stats.csv").open() as table:
        known = next(row for row in csv.DictReader(table) if row["name"] == stats_name)
    trace = read_trace(shared_data / "workloads" / file)
    assert trace.notes == ()
    assert len(trace) == int(known["n"])
    prompt, output = trace.prompt_tokens_T, trace.output_tokens_T
    for column, found in {
        "in_mean": prompt.mean(),
        "in50": np.median(prompt),
        "in99": np.percentile(prompt, 99),
        "inmax": prompt.max(),
        "out_mean": output.mean(),
        "out50": np.median(output),
        "out99": np.percentile(output, 99),
        "outmax": output.max(),
    }.items():
        if known[column] and float(known[column]):
            assert found == pytest.approx(float(known[column]), abs=0.51), column
    if known["cv_iat"]:
        gaps = np.diff(trace.arrival_ns_T)  # type: ignore[arg-type]
        assert gaps.std() / gaps.mean() == pytest.approx(float(known["cv_iat"]), abs=0.006)
        assert trace.arrival_ns_T[-1] / 1e9 == pytest.approx(float(known["dur_s"]), abs=0.1)  # type: ignore[index]
