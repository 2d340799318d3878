"""The board that placements are compared on: what they are fitted to, what they are scored on, the
present placement and EPLB with each number of redundant experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.placement.catalogue import POLICIES
from moesim.placement.load import load_from_trace
from moesim.placement.task import Workload
from moesim.what_if.fitting import EPLB, HASH, Fitted, fit_policy, fit_present
from moesim.what_if.gains import Ruler
from moesim.what_if.scoring import Played, play
from moesim.what_if.setting import FIT, SCORE, Kind, Setting, Tell
from moesim.what_if.shares import shares_by_demand
from moesim.what_if.typical import StepSizes

FITTING = "fitting placements"


@dataclass(frozen=True, eq=False)
class Board:
    """`ruler` weighs kinds of step on the scored half, `fit_ruler` on the fitted half. `eplb`,
    `eplb_played`: by number of redundant experts, copies chosen by hash, scored."""

    setting: Setting
    kinds: tuple[Kind, ...]
    fit: tuple[Workload, ...]
    score: tuple[Workload, ...]
    resampled: tuple[Workload, ...]
    present: Fitted
    present_played: Played
    present_in_sample: Played
    ruler: Ruler
    fit_ruler: Ruler
    eplb: Mapping[int, Fitted]
    eplb_played: Mapping[int, Played]
    unseen_LE: NDArray[np.float64]  # tokens of the scored half that chose each expert

    @property
    def load_LE(self) -> NDArray[np.float64]:
        """Tokens that chose each expert in the steps fitted to, any unit."""
        return self.setting.task(self.fit, self.fewest, HASH).load_LE

    @property
    def fewest(self) -> int:
        """Redundant experts that the ranks need to hold as many slots each."""
        return (-self.setting.experts) % self.setting.ranks

    def scored(self, fitted: Fitted, fan_out: bool = False) -> Played:
        return _play(self.setting, fitted, self.score, fan_out, self.resampled)

    def in_sample(self, fitted: Fitted) -> Played:
        return _play(self.setting, fitted, self.fit)

    def best_eplb(self, redundant: int) -> Played:
        """The faster of EPLB without redundancy and with so many redundant experts."""
        pair = [self.eplb_played[self.fewest], self.eplb_played[redundant]]
        return pair[int(self.ruler.percent(pair[0].seconds, pair[1].seconds) > 0.0)]


def make_board(setting: Setting, sizes: StepSizes, extras: Sequence[int], tell: Tell) -> Board:
    """Draw the steps; fit the present placement, and EPLB with these redundant experts."""
    kinds = setting.kinds(sizes)
    if sizes.decode_share is None:
        kinds = shares_by_demand(setting, kinds)
    fit = setting.workloads(kinds, setting.fit_S, FIT)
    score = setting.workloads(kinds, setting.score_S, SCORE, fitted=False)
    again = setting.resampled(kinds, setting.score_S)
    present = fit_present(setting, fit)
    shares = tuple(kind.share for kind in kinds)
    copies = setting.copy_bytes is not None
    scored = _play(setting, present, score, copies, again)
    in_sample = _play(setting, present, fit)
    eplb: dict[int, Fitted] = {}
    played: dict[int, Played] = {}
    base = (-setting.experts) % setting.ranks
    wanted = sorted({base, present.redundant, *extras})
    for number, extra in enumerate(wanted):
        tell("fitting EPLB, to compare with", number, len(wanted))
        eplb[extra] = fit_policy(EPLB, POLICIES[EPLB], setting.task(fit, extra, HASH))
        played[extra] = _play(setting, eplb[extra], score, copies, again)
    return Board(
        setting, kinds, fit, score, again, present, scored, in_sample,
        Ruler(shares, scored.seconds), Ruler(shares, in_sample.seconds), eplb, played,
        load_from_trace(setting.ids_TLK, setting.experts, setting.rows(setting.score_S)),
    )  # fmt: skip


def _play(
    setting: Setting,
    fitted: Fitted,
    steps: Sequence[Workload],
    fan_out: bool = False,
    resampled: Sequence[Workload] = (),
) -> Played:
    choose_s = setting.seconds_to_choose(fitted.redundant, fitted.choice)
    domains = setting.domain_of_rank_R
    return play(fitted.placement, steps, fitted.choice, domains, fan_out, resampled, choose_s)
