"""The Frechet distance of two sets of vectors, each taken for a Gaussian (Dowson & Landau 1982)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Gaussian:
    """What is kept of n vectors of D numbers."""

    n: int
    mean: NDArray[np.float64]  # (D,)
    covariance: NDArray[np.float64]  # (D, D), of the sample: divided by n - 1


class Moments:
    """Mean and covariance of vectors that come some at a time and are not kept."""

    def __init__(self) -> None:
        self.n = 0
        self._mean = np.zeros(())  # until the first vectors tell D
        self._scatter = np.zeros(())  # sum of (x - mean)(x - mean)^T

    def add(self, vectors: NDArray[np.floating]) -> None:
        """Take in (n, D) more (Chan, Golub & LeVeque 1979: nothing large is taken from something large)."""
        if not len(vectors):
            return
        mean = vectors.mean(axis=0, dtype=np.float64)
        rest = vectors - mean
        n = self.n + len(vectors)
        apart = mean - self._mean
        between = np.outer(apart, apart) * (self.n * len(vectors) / n)
        self._scatter = self._scatter + rest.T @ rest + between
        self._mean = self._mean + apart * (len(vectors) / n)
        self.n = n

    def gaussian(self) -> Gaussian:
        """Of two vectors or more."""
        return Gaussian(self.n, self._mean, self._scatter / (self.n - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), never below zero.

    C_a C_b has the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric: so their roots are real,
    also where there are fewer vectors than dimensions and the usual matrix root is not to be had.
    """
    values, axes = np.linalg.eigh(a.covariance)
    root = (axes * np.sqrt(values.clip(min=0))) @ axes.T
    shared = np.linalg.eigvalsh(root @ b.covariance @ root)
    apart = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(apart @ apart + traces - 2 * np.sqrt(shared.clip(min=0)).sum()))
