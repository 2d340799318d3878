"""One run of Vidur on given requests: `PYTHON vidur_run.py TABLE.csv FOLDER OUT.json [--native]`.

PYTHON is that of an environment with vidur 0.0.26 from PyPI; nothing of moesim is imported. FOLDER
holds `compute` and `network` (vidur_profile.py) and keeps the trained predictor. --native: its
tables are read by Vidur's compiled code.
"""

from __future__ import annotations

import time

BEGAN_S = time.perf_counter()

import csv  # noqa: E402 (the clock starts before anything is imported)
import json  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

os.environ.setdefault("WANDB_MODE", "disabled")
MODEL, DEVICE, NETWORK = "meta-llama/Llama-2-70b-hf", "a100", "a100_dgx"
REPLICAS, TENSOR_PARALLEL = 4, 4
TOKEN_BUDGET, MOST_REQUESTS, MOST_TOKENS = 2048, 128, 4096


def settings(folder: Path, requests: int, native: bool) -> Any:
    """What is simulated: moesim's case `four-dense-a100`."""
    from vidur import config

    replica = config.ReplicaConfig(
        model_name=MODEL,
        num_pipeline_stages=1,
        tensor_parallel_size=TENSOR_PARALLEL,
        device=DEVICE,
        network_device=NETWORK,
    )
    scheduler = config.SarathiSchedulerConfig(batch_size_cap=MOST_REQUESTS, chunk_size=TOKEN_BUDGET)
    return config.SimulationConfig(
        log_level="warning",
        cluster_config=config.ClusterConfig(
            num_replicas=REPLICAS, replica_config=replica, replica_scheduler_config=scheduler
        ),
        request_generator_config=config.SyntheticRequestGeneratorConfig(
            num_requests=requests,
            length_generator_config=config.FixedRequestLengthGeneratorConfig(),
        ),
        execution_time_predictor_config=config.LinearRegressionExecutionTimePredictorConfig(
            polynomial_degree=[1, 2],
            polynomial_include_bias=[True],
            polynomial_interaction_only=[False],
            fit_intercept=[True],
            k_fold_cv_splits=5,
            num_training_job_threads=1,
            prediction_max_tokens_per_request=MOST_TOKENS,
            prediction_max_batch_size=MOST_REQUESTS,
            cache_dir=str(folder / "predictor"),
            use_native_execution_time_predictor=native,
        ),
        metrics_config=config.MetricsConfig(
            output_dir=str(folder / "output"), store_plots=False, enable_chrome_trace=False
        ),
    )


def stay_offline(folder: Path) -> None:
    """The timings of `folder` stand in for those that Vidur would fetch."""
    from vidur.execution_time_predictor import sklearn_execution_time_predictor as predictor
    from vidur.execution_time_predictor.linear_regression_execution_time_predictor import (
        LinearRegressionExecutionTimePredictor,
    )

    def local(repo_id: str, cache_dir: str, **_: object) -> str:
        if "predictions" in cache_dir:
            raise FileNotFoundError("trained here")
        return str(folder / Path(cache_dir).name)

    predictor.snapshot_download = local
    # 0.0.26 leaves a method of this class abstract that only its forest has, and calls it nowhere.
    LinearRegressionExecutionTimePredictor.__abstractmethods__ = frozenset()


def read_requests(path: Path) -> list[Any]:
    """The requests of a table, in order of arrival."""
    from vidur.entities import Request

    with path.open(encoding="utf-8", newline="") as file:
        return [
            Request(
                float(row["arrived_at"]),
                int(row["num_prefill_tokens"]),
                int(row["num_decode_tokens"]),
            )
            for row in csv.DictReader(file)
        ]


def main(arguments: list[str]) -> None:
    """Simulate and write what the process measured of itself."""
    source, folder, target = (Path(each).resolve() for each in arguments[:3])
    logging.disable(logging.INFO)
    from vidur.entities import Batch
    from vidur.request_generator.synthetic_request_generator import SyntheticRequestGenerator
    from vidur.simulator import Simulator

    imported_s = time.perf_counter()
    stay_offline(folder)
    logging.disable(logging.ERROR)  # it tells at length of what it did not fetch
    requests = read_requests(source)
    SyntheticRequestGenerator.generate_requests = lambda _: requests
    simulator = Simulator(settings(folder, len(requests), "--native" in arguments))
    ended_s = [0.0]
    write_output = simulator._write_output

    def written() -> None:
        ended_s[0] = time.perf_counter()
        write_output()

    simulator._write_output = written
    began_s = time.perf_counter()
    simulator.run()
    done = [request for request in requests if request.completed]
    tpot_s = sorted(
        (r.completed_at - r.prefill_completed_at) / max(1, r.num_decode_tokens - 1) for r in done
    )
    found = {
        "requests": len(requests),
        "completed": len(done),
        "steps": Batch.generate_id(),  # ids count from 0
        "simulated_s": simulator._time,
        "tpot_s": tpot_s[len(tpot_s) // 2],
        "import_s": imported_s - BEGAN_S,
        "set_up_s": began_s - imported_s,
        "loop_s": ended_s[0] - began_s,
    }
    target.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
