"""Where the runs of a sweep are made: on this machine through joblib, or on a cluster of Ray or
Dask that is there already.

An engine takes tasks and yields outcomes as they come, in any order. A worker that is killed takes
its own run with it, no other: that run is made again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from moesim.errors import InputError
from moesim.shared_compiling import ALONE
from moesim.shared_routes import shared_routes
from moesim.sweeping.keys import Task
from moesim.sweeping.outcomes import Outcome, run_task
from moesim.sweeping.store import Store

ENGINES = ("local", "ray", "dask")
MOST_WORKERS = 1024
KILLED = "its worker was killed, twice (out of memory? try fewer --workers)"
LOOK_S = 1.0
# Each run has one thread, and one process to compile in: the workers are what uses the cores.
ONE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "NUMEXPR", "BLIS")
} | {ALONE: "1"}


class Engine(Protocol):
    """Runs tasks. `keeps`: its outcomes are in the store already when they come."""

    keeps: bool

    def run(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        """Outcomes as they come; ends the workers when it is closed."""
        ...


class Local:
    """Processes on this machine; with one worker, this process."""

    keeps = True

    def __init__(self, workers: int, routes: Path | None, store: Store) -> None:
        self.workers, self.routes, self.store = workers, routes, store

    def run(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        """As Engine.run; outcomes have been kept."""
        if self.workers == 1 or len(tasks) == 1:
            for task in tasks:
                yield _run_and_keep(task, self.store)
            return
        left = {task.key: task for task in tasks}
        broken = 0  # times in a row without a run in between
        while left and broken < 2:
            before = len(left)
            for found in self._until_broken(list(left.values())):
                del left[found.key]
                yield found
            broken = broken + 1 if len(left) == before else 0
        for key in left:
            yield Outcome(key, failed=KILLED)

    def _until_broken(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        """Outcomes until all are there, or a worker has been killed."""
        from joblib import Parallel, delayed, parallel_config
        from joblib.externals.loky import get_reusable_executor
        from joblib.externals.loky.process_executor import BrokenProcessPool

        job = delayed(_work)
        parent, routes = os.getpid(), self.routes
        try:
            with parallel_config(backend="loky", inner_max_num_threads=1):
                parallel = Parallel(
                    n_jobs=min(self.workers, len(tasks)),
                    return_as="generator_unordered",
                    batch_size=1,
                    max_nbytes=None,
                )
                found = parallel(job(task, self.store, parent, routes) for task in tasks)
            yield from found
        except BrokenProcessPool:
            return
        finally:
            get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _work(task: Task, store: Store, parent: int, routes: Path | None) -> Outcome:
    """A task in a worker's process."""
    _become_worker(parent)
    with ExitStack() as stack:
        if routes is not None:
            stack.enter_context(shared_routes(routes))
        return _run_and_keep(task, store)


def _run_and_keep(task: Task, store: Store) -> Outcome:
    kept = store.find(task.key)  # by another sweep, since this one looked
    if kept is not None:
        return kept
    found = run_task(task)
    store.keep(task, found)
    return found


_worker_of: int | None = None


def _become_worker(parent: int) -> None:
    """Once a process: leave Ctrl-C to the parent, and end with it however it ends."""
    global _worker_of
    if _worker_of == parent:
        return
    _worker_of = parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault(ALONE, "1")  # other workers use the other cores
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)


class Ray:
    """A Ray cluster; a task whose worker dies is made again there, three times at most."""

    keeps = False

    def __init__(self, address: str | None, workers: int | None) -> None:
        self.address, self.workers = address, workers

    def run(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        """As Engine.run."""
        ray = _extra("ray")
        own = not ray.is_initialized()
        if own:
            try:
                ray.init(address=self.address or "auto", log_to_driver=False, logging_level="error")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise _unreachable(error, self.address) from None
        work = ray.remote(num_cpus=1, max_retries=3)(run_task).options(
            runtime_env={"env_vars": ONE_THREAD}
        )
        waiting = list(reversed(tasks))
        under_way: dict[object, Task] = {}
        at_once = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        try:
            while waiting or under_way:
                while waiting and len(under_way) < at_once:
                    task = waiting.pop()
                    under_way[work.remote(task)] = task
                done, _ = ray.wait(list(under_way), num_returns=1)
                for each in done:
                    task = under_way.pop(each)
                    try:
                        yield ray.get(each)
                    except ray.exceptions.RayError as error:
                        yield Outcome(task.key, failed=_first_line(error))
        finally:
            for each in under_way:
                ray.cancel(each, force=True)
            if own:
                ray.shutdown()


class Dask:
    """A Dask cluster; a task whose worker dies is made again there, three times at most."""

    keeps = False

    def __init__(self, address: str | None, workers: int | None) -> None:
        self.address, self.workers = address, workers

    def run(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        """As Engine.run."""
        distributed = _extra("distributed")
        if self.address is None:
            raise InputError("--address", "is required by --engine dask: tcp://HOST:8786")
        try:
            client = distributed.Client(self.address, timeout=10, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise _unreachable(error, self.address) from None
        waiting = list(reversed(tasks))
        under_way: dict[object, Task] = {}
        with client:
            at_once = self.workers or max(1, sum(client.nthreads().values()))
            first = [waiting.pop() for _ in range(min(at_once, len(waiting)))]
            for task in first:
                under_way[client.submit(run_task, task, pure=False)] = task
            ended = distributed.as_completed(list(under_way), loop=client.loop)
            try:
                for each in ended:
                    task = under_way.pop(each)
                    if waiting:
                        following = waiting.pop()
                        future = client.submit(run_task, following, pure=False)
                        under_way[future] = following
                        ended.add(future)
                    if each.status == "finished":
                        yield each.result()
                    else:
                        yield Outcome(task.key, failed=_first_line(each.exception()))
            finally:
                client.cancel(list(under_way), force=True)


def make_engine(
    name: str,
    address: str | None,
    workers: int | None,
    routes: Path | None,
    store: Store,
) -> Local | Ray | Dask:
    """The engine of that name. Raises InputError."""
    if name not in ENGINES:
        raise InputError("--engine", f"must be {', '.join(ENGINES[:-1])} or {ENGINES[-1]}", name)
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise InputError("--workers", f"must be from 1 to {MOST_WORKERS}", workers)
    if name == "local":
        if address is not None:
            raise InputError("--address", "needs --engine ray or dask", address)
        return Local(workers or available_cores(), routes, store)
    _extra("ray" if name == "ray" else "distributed")
    return Ray(address, workers) if name == "ray" else Dask(address, workers)


def available_cores() -> int:
    """Cores that this process may use, as joblib counts them: affinity and cgroups respected."""
    from joblib import cpu_count

    return max(1, int(cpu_count()))


def _extra(module: str) -> Any:
    from importlib import import_module

    extra = {"ray": "ray", "distributed": "dask"}[module]
    try:
        return import_module(module)
    except ImportError:
        hint = f"pip install 'moesim[{extra}]'"
        raise InputError("--engine", f"needs the package {module}", extra, hint) from None


def _unreachable(error: Exception, address: str | None) -> InputError:
    return InputError("--address", f"cannot be reached: {_first_line(error)}", address)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".strip(": ")
