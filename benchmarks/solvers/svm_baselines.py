"""Other SVM solvers, run in worker processes that can be stopped.

A baseline takes features x (m, D) float64, signs (m,), C and the weight of positives, and returns w
of shape (D + 1,), with the regularised intercept last.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrot.benchmarks.solvers.svm_problems import Problem
from fastrot.solvers.svm_libraries import certificate, fit_cyanure, fit_linearsvc
from fastrot.system.processes import end_children, start_child

Solver = Callable[[NDArray[np.float64], NDArray[np.int8], float, float, int], NDArray[np.float64]]


def linearsvc(
    x: NDArray[np.float64], y: NDArray[np.int8], cost: float, weight: float, threads: int
) -> NDArray[np.float64]:
    """Fit scikit-learn's LinearSVC with the settings of the published scripts."""
    return fit_linearsvc(x, y, cost, weight, dual=True, tolerance=1e-4, steps=2000)


def sklearn(
    x: NDArray[np.float64], y: NDArray[np.int8], cost: float, weight: float, threads: int
) -> NDArray[np.float64]:
    """Fit scikit-learn's LinearSVC as ``svm.solver=sklearn`` does, to the optimum."""
    return fit_linearsvc(x, y, cost, weight, tolerance=1e-6)


def cyanure(
    x: NDArray[np.float64], y: NDArray[np.int8], cost: float, weight: float, threads: int
) -> NDArray[np.float64]:
    """Fit with cyanure to a relative duality gap of 1e-4."""
    return fit_cyanure(x, y, cost, weight, tolerance=1e-4, passes=2000, threads=threads)


def liblinear_multicore(
    x: NDArray[np.float64], y: NDArray[np.int8], cost: float, weight: float, threads: int
) -> NDArray[np.float64]:
    """Fit with liblinear-multicore's dual solver (-s 1 -m) and the published tolerance."""
    import scipy.sparse
    from liblinear import liblinearutil

    data = liblinearutil.problem(y.astype(np.float64), scipy.sparse.csr_matrix(x), bias=1)
    options = f"-s 1 -c {cost!r} -w1 {weight!r} -w-1 1 -B 1 -e 0.0001 -m {threads} -q"
    model = liblinearutil.train(data, liblinearutil.parameter(options))
    w, bias = model.get_decfun()
    return np.append(np.asarray(w, np.float64)[: x.shape[1]], bias)


BASELINES: dict[str, tuple[Solver, str, bool]] = {
    "linearsvc": (linearsvc, "sklearn", False),
    "sklearn": (sklearn, "sklearn", False),
    "cyanure": (cyanure, "cyanure", False),
    "liblinear-multicore": (liblinear_multicore, "liblinear", True),
}
"""By name: the solver, the module it needs, and whether one process uses all threads."""


class Fit(NamedTuple):
    """One problem, solved by a baseline.

    Attributes:
        problem: index of the problem in the sample.
        seconds: time of the fit alone, in seconds; the limit if it was stopped.
        objective: P(w); infinite if it was stopped.
        w: of shape (D + 1,); None if it was stopped.
        failure: what went wrong; empty if nothing did.
    """

    problem: int
    seconds: float
    objective: float
    w: NDArray[np.float64] | None
    failure: str = ""


def missing(name: str) -> str | None:
    """Return why a baseline cannot take part, or None if it can."""
    module = BASELINES[name][1]
    return None if importlib.util.find_spec(module) else f"the package {module} is not installed"


def fit_all(
    name: str,
    features: Path,
    problems: Sequence[Problem],
    positive_weight: float,
    *,
    threads: int,
    limit: float,
) -> Iterator[Fit]:
    """Fit all problems, with one process per thread or one process with all threads.

    Args:
        name: name of the baseline.
        features: a .npy file of float64, (n, D), that every process maps.
        problems: problems to fit.
        positive_weight: weight of positives in all of them.
        threads: number of cores to use.
        limit: time after which a fit is stopped, in seconds.
    """
    _, _, shares = BASELINES[name]
    count, each = (1, threads) if shares else (threads, 1)
    left = list(enumerate(problems))[::-1]
    workers = [_Worker(name, features, positive_weight, each) for _ in range(count)]
    try:
        while left or any(worker.busy for worker in workers):
            for worker in workers:
                if left and not worker.busy:
                    worker.start(*left.pop())
            busy = [worker for worker in workers if worker.busy]
            until = max(0.0, limit - max(worker.age for worker in busy))
            ready = wait([worker.answers for worker in busy], timeout=until)
            for worker in workers:
                if worker.answers in ready:
                    yield worker.result()
                elif worker.busy and worker.age >= limit:
                    yield Fit(worker.busy[0], limit, float("inf"), None, "stopped at the limit")
                    worker.close()
                    worker.renew()
    finally:
        for worker in workers:
            worker.close()


class _Worker:
    """A process that fits one problem at a time."""

    def __init__(self, name: str, features: Path, weight: float, threads: int) -> None:
        self._arguments = [name, str(features), repr(weight), str(threads)]
        self.renew()

    def renew(self) -> None:
        """Start a new process."""
        self._child = start_child(
            [sys.executable, "-m", "fastrot.benchmarks.solvers.svm_baselines", *self._arguments],
            environment={"OMP_NUM_THREADS": self._arguments[-1]},  # read by libraries as they load
            pipes=True,
        )
        assert self._child.stdin is not None and self._child.stdout is not None
        self._requests = Connection(os.dup(self._child.stdin.fileno()), readable=False)
        self.answers = Connection(os.dup(self._child.stdout.fileno()), writable=False)
        self._child.stdin.close()
        self._child.stdout.close()
        self.answers.recv()  # sent after its imports, once its file is mapped
        self.busy: tuple[int, Problem] | None = None

    @property
    def age(self) -> float:
        """Return the seconds since the current fit began."""
        return time.monotonic() - self._began

    def start(self, number: int, problem: Problem) -> None:
        """Send a problem to the process."""
        self.busy, self._began = (number, problem), time.monotonic()
        self._requests.send(self.busy)

    def result(self) -> Fit:
        """Return the fit, or why it failed."""
        assert self.busy is not None
        number, self.busy = self.busy[0], None
        try:
            return Fit(*self.answers.recv())
        except EOFError:
            self.close()
            code = self._child.returncode
            self.renew()
            return Fit(number, float("nan"), float("inf"), None, f"its process ended ({code})")

    def close(self) -> None:
        """End the process."""
        self._requests.close()
        self.answers.close()
        end_children([self._child])


def _serve(name: str, path: Path, positive_weight: float, threads: int) -> None:
    """Fit problems from standard input until it ends; write the fits to standard output."""
    requests, answers = Connection(0, writable=False), Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # keep a library's output out of the answers
    solver = BASELINES[name][0]
    features = np.load(path, mmap_mode="r")
    tiny = np.eye(4)  # imports at the first fit must not be timed
    solver(tiny, np.array([1, -1, 1, -1], np.int8), 1.0, positive_weight, threads)
    answers.send(None)
    while True:
        try:
            number, problem = requests.recv()
        except EOFError:
            return
        x = np.array(features[problem.rows])
        started = time.perf_counter()
        try:
            w = solver(x, problem.signs, problem.cost, positive_weight, threads)
        except Exception as error:
            answers.send((number, float("nan"), float("inf"), None, repr(error)))
            continue
        seconds = time.perf_counter() - started
        # Libraries differ in which of the two labels has the positive side.
        value, w = min(
            (
                (certificate(side, x, problem.signs, problem.cost, positive_weight)[0], side)
                for side in (w, -w)
            ),
            key=lambda pair: pair[0],
        )
        answers.send((number, seconds, value, w))


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
