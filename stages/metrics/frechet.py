"""The Fréchet distance of two sets of vectors, each modelled as a Gaussian (Dowson & Landau 1982)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Mean and covariance of n vectors of D numbers."""

    n: int
    mean: NDArray[np.float64]  # (D,)
    covariance: NDArray[np.float64]  # (D, D), of the sample: divided by n - 1


class Moments:
    """Running mean and covariance of vectors that arrive in batches and are not stored."""

    def __init__(self) -> None:
        self.n = 0
        self._mean = np.zeros(())  # D is not known before the first batch
        self._scatter = np.zeros(())  # sum of (x - mean)(x - mean)^T

    def add(self, vectors: NDArray[np.floating]) -> None:
        """Add (n, D) vectors (Chan, Golub & LeVeque 1979: large sums are never subtracted)."""
        if not len(vectors):
            return
        mean = vectors.mean(axis=0, dtype=np.float64)
        deviations = vectors - mean
        n = self.n + len(vectors)
        delta = mean - self._mean
        between = np.outer(delta, delta) * (self.n * len(vectors) / n)
        self._scatter = self._scatter + deviations.T @ deviations + between
        self._mean = self._mean + delta * (len(vectors) / n)
        self.n = n

    def fit_gaussian(self) -> Gaussian:
        """The Gaussian of all vectors so far, at least two."""
        return Gaussian(self.n, self._mean, self._scatter / (self.n - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), never below zero.

    C_a C_b has the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric. So their roots are real, even
    with fewer vectors than dimensions, where the usual matrix square root fails.
    """
    values, axes = np.linalg.eigh(a.covariance)
    root = (axes * np.sqrt(values.clip(min=0))) @ axes.T
    eigenvalues = np.linalg.eigvalsh(root @ b.covariance @ root)
    delta = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(delta @ delta + traces - 2 * np.sqrt(eigenvalues.clip(min=0)).sum()))
