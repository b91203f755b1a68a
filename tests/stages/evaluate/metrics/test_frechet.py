from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from stages.evaluate.metrics.frechet import Gaussian, Moments, frechet_distance

RNG = np.random.default_rng


def of(vectors: np.ndarray) -> Gaussian:
    moments = Moments()
    moments.add(vectors)
    return moments.gaussian()


def gaussian(mean: list[float], covariance: np.ndarray) -> Gaussian:
    return Gaussian(1000, np.array(mean), covariance)


def test_gaussians_of_known_distance() -> None:
    """On a line it is (m - n)^2 + (s - t)^2; with independent axes these add up."""
    line = frechet_distance(gaussian([3], np.diag([4.0])), gaussian([-1], np.diag([0.25])))
    assert line == pytest.approx(4**2 + 1.5**2)
    a, b = gaussian([1, 2, 3], np.diag([1.0, 4, 9])), gaussian([1, 0, 3], np.diag([4.0, 4, 0]))
    assert frechet_distance(a, b) == pytest.approx(0 + 2**2 + 0 + 1**2 + 0 + 3**2)
    turn = np.linalg.qr(RNG(0).normal(size=(3, 3)))[0]
    turned = [Gaussian(g.n, turn @ g.mean, turn @ g.covariance @ turn.T) for g in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b))


def test_it_is_the_textbooks_formula_where_axes_differ() -> None:
    a, b = (of(RNG(seed).normal(size=(500, 12)) @ RNG(seed + 9).normal(size=(12, 12))) for seed in (0, 1))
    root = sqrtm(a.covariance @ b.covariance).real
    expected = (a.mean - b.mean) @ (a.mean - b.mean) + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


@pytest.mark.parametrize("n", [2, 20, 400])
def test_a_set_is_at_no_distance_from_itself_also_where_it_lacks_rank(n: int) -> None:
    a = of(RNG(0).normal(5, 3, size=(n, 64)))
    assert 0 <= frechet_distance(a, a) < 1e-5
    others = of(RNG(1).normal(5, 3, size=(n, 64)))
    assert frechet_distance(a, others) > 1


def test_chunks_give_what_the_whole_gives() -> None:
    """Far from zero, where a sum of squares would lose its digits."""
    vectors = RNG(0).normal(1e6, 1, size=(300, 8)).astype(np.float64)
    moments = Moments()
    for chunk in np.split(vectors, [1, 2, 2, 90, 299]):
        moments.add(chunk)
    found = moments.gaussian()
    assert found.n == 300
    assert np.allclose(found.mean, vectors.mean(axis=0), rtol=1e-15)
    assert np.allclose(found.covariance, np.cov(vectors.T), rtol=1e-9)
