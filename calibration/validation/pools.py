"""Which measured runs each figure is about, and which constants predict them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from calibration.runs.labels import LabelledRun
from calibration.runs.rows import SiliconRun
from calibration.runs.scenario_of import model_name
from calibration.selection import scored


@dataclass(frozen=True)
class Pool:
    """A set of aggregated runs, each measurement once, with repaired labels.

    `rows` says in words which ones; `only` is a condition on top of those of `scored`.
    """

    rows: str
    inferencex: bool = False
    repaired: bool = True
    flagged: bool = False
    data_parallel: bool = False
    only: Callable[[SiliconRun], bool] = lambda run: True

    def of(self, labelled: Iterable[LabelledRun]) -> tuple[SiliconRun, ...]:
        """The pool's runs, in the order of the file."""
        found = scored(
            labelled,
            inferencex=self.inferencex,
            repaired=self.repaired,
            flagged=self.flagged,
            data_parallel=self.data_parallel,
        )
        return tuple(run for run in found if self.only(run))


def _moe(run: SiliconRun) -> bool:
    return run.is_moe


def _dense(run: SiliconRun) -> bool:
    return not run.is_moe


def _data_parallel(run: SiliconRun) -> bool:
    return run.parallel.attention_dp > 1


# The headline takes the MoE runs of every source: InferenceX alone has 1,371 of them with one
# attention rank, and 1,467 in all. The published errors of the peer and of the prototype are over
# InferenceX runs *with* its dense model (Llama-3.1-70B): 881 of the 896 rows on vLLM here are those
# that the peer could predict.
POOLS = {
    "moe": Pool("MoE models, every source, one attention rank", only=_moe),
    "inferencex": Pool("InferenceX, its dense model included, one attention rank", True),
    "inferencex_moe": Pool("InferenceX, MoE models, one attention rank", True, only=_moe),
    "data_parallel": Pool(
        "MoE models with attention data parallelism, every source",
        data_parallel=True,
        only=_data_parallel,
    ),
    "dense": Pool("dense models, every source", only=_dense),
    "dense_inferencex": Pool("dense models, InferenceX", True, only=_dense),
    "unrepaired": Pool("InferenceX, runs whose labels needed no repair", True, repaired=False),
    "all_inferencex": Pool(
        "InferenceX, flagged runs and data parallelism included",
        True,
        flagged=True,
        data_parallel=True,
    ),
    "all_moe": Pool("every MoE run, flagged or not", flagged=True, data_parallel=True, only=_moe),
    "all": Pool("every aggregated run, flagged or not", flagged=True, data_parallel=True),
}
FLAGGED_POOLS = ("all_inferencex", "all_moe", "all")

SPLIT_TEXT = (
    "By sweep, never by row. Headline: leave-one-model-out: every constant that is applied to a "
    "model was fitted without any end-to-end row of that model (DeepSeek-R1 and V3 count as one "
    "model). Beside it: leave-one-GPU-out."
)


def blind_fold(run: SiliconRun) -> str:
    """Constants fitted without any end-to-end run of the run's model."""
    return f"model:{model_name(run)}"


def gpu_fold(run: SiliconRun) -> str:
    """Constants fitted without any end-to-end run on the run's GPU."""
    return f"gpu:{run.gpu}"


def in_sample_fold(run: SiliconRun) -> str:
    """Constants fitted on everything, the run included."""
    return "all"


SPLITS: dict[str, Callable[[SiliconRun], str]] = {
    "blind": blind_fold,
    "leave_one_gpu_out": gpu_fold,
    "in_sample": in_sample_fold,
}


def union(groups: Iterable[Sequence[SiliconRun]]) -> tuple[SiliconRun, ...]:
    """The distinct runs of several pools, in the order of the file."""
    found = {run.id: run for group in groups for run in group}
    return tuple(sorted(found.values(), key=lambda run: run.row))
