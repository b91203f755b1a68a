from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from stages.metrics.frechet import Gaussian, Moments, frechet_distance

RNG = np.random.default_rng


def fit(vectors: np.ndarray) -> Gaussian:
    moments = Moments()
    moments.add(vectors)
    return moments.fit_gaussian()


def make_gaussian(mean: list[float], covariance: np.ndarray) -> Gaussian:
    return Gaussian(1000, np.array(mean), covariance)


def test_gaussians_have_their_known_distance() -> None:
    """In one dimension it is (m - n)^2 + (s - t)^2; over independent axes these add up."""
    line = frechet_distance(make_gaussian([3], np.diag([4.0])), make_gaussian([-1], np.diag([0.25])))
    assert line == pytest.approx(4**2 + 1.5**2)
    a, b = make_gaussian([1, 2, 3], np.diag([1.0, 4, 9])), make_gaussian([1, 0, 3], np.diag([4.0, 4, 0]))
    assert frechet_distance(a, b) == pytest.approx(0 + 2**2 + 0 + 1**2 + 0 + 3**2)
    rotation = np.linalg.qr(RNG(0).normal(size=(3, 3)))[0]
    rotated = [Gaussian(g.n, rotation @ g.mean, rotation @ g.covariance @ rotation.T) for g in (a, b)]
    assert frechet_distance(*rotated) == pytest.approx(frechet_distance(a, b))


def test_the_distance_is_the_textbook_formula_for_different_axes() -> None:
    a, b = (fit(RNG(seed).normal(size=(500, 12)) @ RNG(seed + 9).normal(size=(12, 12))) for seed in (0, 1))
    root = sqrtm(a.covariance @ b.covariance).real
    expected = (a.mean - b.mean) @ (a.mean - b.mean) + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


@pytest.mark.parametrize("n", [2, 20, 400])
def test_the_distance_of_a_set_from_itself_is_zero_even_without_full_rank(n: int) -> None:
    a = fit(RNG(0).normal(5, 3, size=(n, 64)))
    assert 0 <= frechet_distance(a, a) < 1e-5
    others = fit(RNG(1).normal(5, 3, size=(n, 64)))
    assert frechet_distance(a, others) > 1


def test_moments_of_batches_equal_those_of_all_vectors() -> None:
    """Far from zero, where a sum of squares would lose precision."""
    vectors = RNG(0).normal(1e6, 1, size=(300, 8)).astype(np.float64)
    moments = Moments()
    for batch in np.split(vectors, [1, 2, 2, 90, 299]):
        moments.add(batch)
    gaussian = moments.fit_gaussian()
    assert gaussian.n == 300
    assert np.allclose(gaussian.mean, vectors.mean(axis=0), rtol=1e-15)
    assert np.allclose(gaussian.covariance, np.cov(vectors.T), rtol=1e-9)
