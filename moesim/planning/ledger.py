"""The simulations of a plan, kept in an Optuna study: in memory, or in a file that outlives us.

A finished trial is one simulation: its parameters are the shape's choices, its value what the
sampler is to make small, and `outcome` what came of it. SQLite commits each as it ends, so that a
plan that is killed loses the one under way.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.errors import InputError
from moesim.planning.outcomes import Outcome
from moesim.planning.shapes import Shape
from moesim.planning.space import Space, label
from moesim.planning.study_file import NAME, RULE, check_study_file

if TYPE_CHECKING:
    import optuna

FINGERPRINT, OUTCOME = "fingerprint", "outcome"
Key = tuple[str, int, int, int]  # shape, copies, requests, seed


def fingerprint(question: Mapping[str, Any]) -> str:
    """Of what a plan was asked, as plain data."""
    text = json.dumps(question, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Ledger:
    """What has been simulated, and Optuna's advice what to simulate next."""

    def __init__(self, space: Space, question: str, seed: int, path: Path | None) -> None:
        import optuna

        logging.getLogger("optuna").setLevel(logging.WARNING)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self._distributions = _distributions(space)
        sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=8)
        self.study = _open(sampler, path)
        self.known: dict[Key, Outcome] = {}
        try:
            made_for = self.study.user_attrs.get(FINGERPRINT)
            trials = self.study.get_trials(deepcopy=False)
            self.known.update(_known(trials))
        except Exception as error:  # of Optuna and SQLAlchemy, on a file that others wrote
            raise _unreadable(error, path) from None
        if made_for != question and (made_for is not None or trials):
            raise InputError(
                "--study",
                "was begun for another scenario, space, percentile or number of requests, or "
                "before files that it names were changed",
                str(path),
                "name another file, or ask what was asked before",
            )
        if made_for is None:
            self.study.set_user_attr(FINGERPRINT, question)

    @property
    def simulations(self) -> int:
        return len(self.known)

    def keep(self, shape: Shape, found: Outcome, value: float) -> None:
        """What came of a simulation, as one finished trial."""
        import optuna

        self.study.add_trial(
            optuna.trial.create_trial(
                params=self._parameters(shape),
                distributions=self._distributions,
                value=value,
                user_attrs={"shape": shape.key, OUTCOME: found.to_json()},
            )
        )
        self.known[shape.key, found.units, found.requests, found.seed] = found

    def advice(self) -> str:
        """The key of the shape that the sampler would try; it need not be one that can be run."""
        import optuna

        trial = self.study.ask(self._distributions)
        choices = {
            each.path: each.values[trial.params[each.path]]
            if each.ordinal
            else each.values[each.labels.index(trial.params[each.path])]
            for each in self.space.dimensions
        }
        self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return json.dumps({path: label(value) for path, value in choices.items()})

    def _parameters(self, shape: Shape) -> dict[str, Any]:
        return {
            each.path: each.values.index(shape.choices[each.path])
            if each.ordinal
            else label(shape.choices[each.path])
            for each in self.space.dimensions
        }


def _distributions(space: Space) -> dict[str, Any]:
    """Ordered numbers by their position, everything else by name."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    return {
        each.path: IntDistribution(0, len(each.values) - 1)
        if each.ordinal
        else CategoricalDistribution(each.labels)
        for each in space.dimensions
    }


def _known(trials: Iterable[Any]) -> Iterator[tuple[Key, Outcome]]:
    """Simulations among trials; ValueError, KeyError or TypeError for what is none."""
    for trial in trials:
        if trial.state.is_finished() and OUTCOME in trial.user_attrs:
            found = Outcome.from_json(trial.user_attrs[OUTCOME])
            yield (str(trial.user_attrs["shape"]), found.units, found.requests, found.seed), found


def _open(sampler: Any, path: Path | None) -> optuna.Study:
    import optuna

    if path is not None:
        check_study_file(path)
    try:
        storage = None if path is None else optuna.storages.RDBStorage(f"sqlite:///{path}")
        return optuna.create_study(
            storage=storage, sampler=sampler, study_name=NAME, load_if_exists=True
        )
    except Exception as error:  # of SQLAlchemy: of another version, not to be written
        raise _unreadable(error, path) from None


def _unreadable(error: Exception, path: Path | None) -> InputError:
    return InputError("--study", f"{RULE}: {(str(error).splitlines() or [''])[0]}", str(path))
