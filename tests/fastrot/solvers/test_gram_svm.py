"""SVMs over a Gram matrix: the optimum that scikit-learn's LinearSVC has, and gaps that hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.svm import LinearSVC

from fastrot.data.images.decode import decode_image
from fastrot.solvers import gram_svm
from fastrot.solvers.gram import Gram
from fastrot.solvers.gram_svm import Solution, Stack, solve_parts, solve_path

COSTS = (1e-5, 1e-3, 0.0625, 1.0, 100.0)
WEIGHT = 2.0


@pytest.fixture(scope="module")
def photos(test_data: Callable[[str], Path]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Normalised 32 x 32 thumbnails of 300 photos in 10 classes, and their labels."""
    rows, labels = [], []
    for label, folder in enumerate(sorted((test_data("imagenette-128") / "train").iterdir())):
        for path in sorted(folder.iterdir())[:30]:
            pixels = decode_image(path.read_bytes(), apply_exif=True)
            rows.append(pixels[::4, ::4].reshape(-1)[:3072] / 255.0)
            labels.append(label)
    features = np.stack(rows)
    features /= np.linalg.norm(features, axis=1, keepdims=True) + 1e-5
    return features, np.array(labels)


def one_against_rest(labels: NDArray[np.int64], classes: int = 4) -> NDArray[np.int8]:
    return np.stack([np.where(labels == c, 1, -1) for c in range(classes)]).astype(np.int8)


def solve(
    features: NDArray[np.float64], signs: NDArray[np.int8], **options: object
) -> list[Solution]:
    gram = Gram(torch.from_numpy(features), **options)  # type: ignore[arg-type]
    return list(
        solve_path(gram, torch.from_numpy(signs), COSTS, positive_weight=WEIGHT, tolerance=1e-7)
    )


def objective(
    w: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.int8], cost: float
) -> float:
    """P(w) from its definition; the last feature of x is 1."""
    used = y != 0
    hinge = np.maximum(0, 1 - y[used] * (x[used] @ w))
    costs = np.where(y[used] > 0, WEIGHT * cost, cost)
    return float(0.5 * w @ w + costs @ hinge**2)


def test_objectives_and_decisions_are_those_of_linear_svc(photos) -> None:
    features, labels = photos
    features = np.ascontiguousarray(features[:, ::8])  # LinearSVC takes its time
    signs = one_against_rest(labels)
    x = np.hstack([features, np.ones((len(features), 1))])
    for solution in solve(features, signs):
        for p, y in enumerate(signs):
            w = solution.coefficients[p].numpy() @ x
            ours = objective(w, x, y, solution.cost)
            assert ours == pytest.approx(float(solution.objective[p]), rel=1e-6)
            np.testing.assert_allclose(x @ w, solution.decision[p].numpy(), atol=1e-6)
            peer = LinearSVC(
                C=solution.cost, class_weight={1: WEIGHT, -1: 1}, tol=1e-9, max_iter=200_000
            ).fit(features, y)
            theirs = objective(np.append(peer.coef_, peer.intercept_), x, y, solution.cost)
            assert ours <= theirs * (1 + 1e-6)
            assert theirs <= ours * (1 + 1e-4), "LinearSVC did not converge: the test says nothing"
            assert 0 <= float(solution.gap[p]) + 1e-12 <= 1e-7 + 1e-12


def test_samples_that_are_not_in_a_problem_do_not_matter(photos) -> None:
    features, labels = photos
    signs = one_against_rest(labels)
    left_out = np.arange(len(labels)) % 3 == 0
    masked = np.where(left_out, 0, signs).astype(np.int8)
    whole, part = solve(features, masked), solve(features[~left_out], signs[:, ~left_out])
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_allclose(a.objective, b.objective, rtol=1e-6)
        np.testing.assert_allclose(a.decision[:, ~left_out], b.decision, atol=2e-3)


def test_more_samples_than_dimensions_give_the_same_without_a_square(photos) -> None:
    features, labels = photos
    few = np.ascontiguousarray(features[:, ::60])
    signs = one_against_rest(labels)
    assert not Gram(torch.from_numpy(few))._square
    for a, b in zip(solve(few, signs), solve(few, signs, square=True), strict=True):
        np.testing.assert_allclose(a.objective, b.objective, rtol=1e-6)


@pytest.mark.parametrize("square", [True, False])
def test_problems_on_their_own_samples_have_the_same_optimum(photos, square: bool) -> None:
    features, labels = photos
    generator = np.random.default_rng(0)
    signs = np.zeros((9, len(labels)), np.int8)
    for p, size in enumerate((20, 20, 20, 60, 60, 200, 200, 300, 5)):
        drawn = generator.permutation(len(labels))[:size]
        signs[p, drawn] = np.where(labels[drawn] == labels[drawn[0]], 1, -1)
    costs = [1.0, 100.0, 1e-5, 0.0625, 1e-3]  # not in order
    gram = Gram(torch.from_numpy(features), square=square)
    options = {"positive_weight": WEIGHT, "tolerance": 1e-7}
    x = np.hstack([features, np.ones((len(features), 1))])
    known = {s.cost: s for s in solve_path(gram, torch.from_numpy(signs), costs, **options)}
    seen: list[int] = []
    for stack in solve_parts(gram, torch.from_numpy(signs), costs, **options):
        seen += stack.problems.tolist()
        for g, p in enumerate(stack.problems.tolist()):
            assert stack.members[g].tolist() == np.flatnonzero(signs[p]).tolist()
            for s, cost in enumerate(costs):
                w = stack.coefficients[g, s].numpy() @ x[stack.members[g]]
                ours = objective(w, x, signs[p], cost)
                assert ours == pytest.approx(float(stack.objective[g, s]), rel=1e-6)
                assert ours == pytest.approx(float(known[cost].objective[p]), rel=2e-7)
                assert -1e-12 <= float(stack.gap[g, s]) <= 1e-7
    assert sorted(seen) == list(range(9))


def test_a_gap_once_reached_stays_while_others_of_the_stack_go_on(photos) -> None:
    features, labels = photos
    generator = np.random.default_rng(2)
    signs = np.zeros((100, len(labels)), np.int8)
    for p, row in enumerate(signs):
        row[generator.choice(np.flatnonzero(labels != p % 10), 38, replace=False)] = -1
        row[generator.choice(np.flatnonzero(labels == p % 10), 2, replace=False)] = 1
    costs = [1.0, *(0.5**i for i in range(4, 20))]
    gram = Gram(torch.from_numpy(features))
    for tolerance in (1e-5, 1e-6, 1e-7):
        for stack in solve_parts(
            gram, torch.from_numpy(signs), costs, positive_weight=WEIGHT, tolerance=tolerance
        ):
            assert float(stack.gap.max()) <= tolerance


def test_stacks_larger_than_the_limit_are_solved_in_turn(photos, monkeypatch) -> None:
    features, labels = photos
    signs = torch.from_numpy(one_against_rest(labels))
    whole = list(solve_parts(Gram(torch.from_numpy(features)), signs, COSTS))
    monkeypatch.setitem(gram_svm._STACK, "cpu", 2 * len(labels) ** 2)
    halves = list(solve_parts(Gram(torch.from_numpy(features)), signs, COSTS))
    assert [len(stack.problems) for stack in halves] == [2, 2]
    together = torch.cat([stack.objective for stack in halves])
    torch.testing.assert_close(together, torch.cat([s.objective for s in whole]), rtol=2e-6, atol=0)


@pytest.mark.parametrize("kind", ["few dimensions", "unit rows", "zeros", "every row twice"])
@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("solver", [solve_path, solve_parts])
def test_a_singular_gram_matrix_is_no_excuse(
    kind: str, square: bool, solver: Callable[..., Iterator[Solution | Stack]]
) -> None:
    """Labels without rhyme or reason, so that most of the coefficients are in its null space."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((100, 5))
    x = {
        "few dimensions": x,
        "unit rows": x / np.linalg.norm(x, axis=1, keepdims=True),
        "zeros": 0 * x,
        "every row twice": np.concatenate([x[:50], x[:50]]),
    }[kind]
    signs = generator.choice([1, -1, 0], size=(4, 100)).astype(np.int8)
    wide, costs = np.hstack([x, np.ones((100, 1))]), [1.0, 16.0, 100.0, 1000.0]
    gram = Gram(torch.from_numpy(x), square=square)
    for part in solver(gram, torch.from_numpy(signs), costs, positive_weight=WEIGHT):
        assert -1e-12 <= float(part.gap.min()) and float(part.gap.max()) <= 1e-6
        if isinstance(part, Solution):
            b = part.coefficients.numpy()
            np.testing.assert_allclose(b @ wide @ wide.T, part.decision, atol=1e-6)
            found = [(p, part.cost, b[p] @ wide, part.objective[p]) for p in range(4)]
        else:
            found = [
                (p, cost, part.coefficients[g, s].numpy() @ wide[part.members[g]],
                 part.objective[g, s])
                for g, p in enumerate(part.problems.tolist()) for s, cost in enumerate(costs)
            ]  # fmt: skip
        for p, cost, w, value in found:
            assert objective(w, wide, signs[p], cost) == pytest.approx(float(value), rel=1e-7)


@pytest.mark.parametrize("square", [True, False])
def test_a_problem_without_samples_has_no_cost(square: bool) -> None:
    signs = torch.tensor([[0, 0, 0], [1, -1, 0]])
    gram = Gram(torch.eye(3, dtype=torch.float64), square=square)
    (solution,) = solve_path(gram, signs, [1.0])
    assert float(solution.objective[0]) == 0 and float(solution.gap[0]) == 0
    empty, other = solve_parts(gram, signs, [1.0, 2.0])
    assert empty.problems.tolist() == [0] and empty.coefficients.shape == (1, 2, 0)
    assert not empty.objective.any() and not empty.gap.any()
    torch.testing.assert_close(other.objective[0, 0], solution.objective[1])


def test_huge_features_raise_nothing() -> None:
    rows = 1e4 * np.random.default_rng(0).standard_normal((30, 64))
    gram = Gram(torch.from_numpy(np.concatenate([rows, rows])))
    signs = torch.from_numpy(np.random.default_rng(1).choice([1, -1], (1, 60)))
    (solution,) = solve_path(gram, signs, [1e6])
    assert bool(solution.objective.isfinite().all() and solution.gap.isfinite().all())


def test_features_of_zeros_leave_the_intercept_alone() -> None:
    signs = np.array([[1, -1, -1, -1]], np.int8)
    for solution in solve(np.zeros((4, 3)), signs):
        c = solution.cost
        # minimise b^2/2 + 2c (1 - b)^2 + 3c (1 + b)^2
        assert float(solution.decision[0, 0]) == pytest.approx(-2 * c / (1 + 10 * c), rel=2e-4)


def test_costs_beside_which_the_gram_matrix_is_singular(photos) -> None:
    features, labels = photos
    twice = Gram(
        torch.from_numpy(np.concatenate([features[:150]] * 2))
    )  # all images are there twice
    signs = torch.from_numpy(one_against_rest(np.concatenate([labels[:150]] * 2)))
    costs = [1e2, 1e4, 1e6]
    path = list(solve_path(twice, signs, costs))
    (stack,) = solve_parts(twice, signs, costs)
    assert max(float(solution.gap.max()) for solution in path) <= 1e-6
    assert float(stack.gap.max()) <= 1e-6
    objectives = torch.stack([solution.objective for solution in path], dim=1)
    torch.testing.assert_close(stack.objective, objectives, rtol=2e-6, atol=0)
    assert (objectives.diff(dim=1) > 0).all(), "a higher cost is a higher objective"


def test_one_positive_sample_is_enough(photos) -> None:
    features, _ = photos
    signs = np.full((1, len(features)), -1, np.int8)
    signs[0, 7] = 1
    last = solve(features, signs)[-1]
    assert int(last.decision[0].argmax()) == 7


def test_bad_arguments_are_named() -> None:
    gram = Gram(torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"signs of shape \(1, 2\) must be \(problems, 3 samples"):
        list(solve_path(gram, torch.ones(1, 2), [1.0]))
    with pytest.raises(ValueError, match=r"signs of shape \(0, 3\) must be"):
        list(solve_parts(gram, torch.ones(0, 3), [1.0]))
    with pytest.raises(ValueError, match="must be positive and finite"):
        list(solve_path(gram, torch.ones(1, 3), [0.0]))
    with pytest.raises(ValueError, match="must be positive and finite"):
        list(solve_parts(gram, torch.ones(1, 3), [-1.0]))
    with pytest.raises(ValueError, match="features must be finite"):
        Gram(torch.full((2, 2), float("nan")))
