"""The expected gain of each untried setting, from a Gaussian process over the difference between measured and modelled rates.

Each measurement has its own noise, because a trial that was stopped early is less precise than one that ran to its end; Optuna's
GPSampler fits one noise variance for all. Rates are logarithms, so a gain is relative, and no rate is expected to exceed that of the
training step alone. Imports NumPy only. Formulas: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, 2.2 and 5.4.1;
expected improvement: Jones et al. 1998.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from feedrate.analysis.cpu_time import Array
from feedrate.analysis.rate_model import RateModel

JITTER_SD = 0.004
"""Standard deviation added to the noise of each measurement, for differences between settings that the kernel regards as equal."""
CEILING_SD = 0.02
"""Standard deviation of log(ceiling), the rate of the training step alone."""
_AMPLITUDES = (0.05, 0.1, 0.2, 0.4, 0.8)
_SMALL_AMPLITUDES = (0.02, 0.05, 0.1, 0.2)
_SCALES = (0.5, 0.7, 1.0, 1.4, 2.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Settings as numbers, one row per setting."""

    num_workers: Array
    batch_size: Array
    """Batch size of each setting; 0 if the workload's own batch sampler makes the batches."""
    main: Array
    """Features made from the number of workers and the batch size, the two dimensions with the largest effect; shape (settings, dimensions). Scaled so that settings 1 apart may differ in rate."""
    rest: Array
    """Features of the other dimensions, scaled in the same way."""

    @property
    def all(self) -> Array:
        """The features of `main` and `rest`, side by side."""
        return np.concatenate([self.main, self.rest], axis=1)


class Surrogate:
    """A Gaussian process that is fitted to measured rates.

    Args:
        settings: the measured settings.
        log_sps: log of their rates, shape (settings,).
        sd: standard deviation of each, including the run-to-run spread.
        model: the model of loading, which gives the mean of the process.
    """

    def __init__(self, settings: Settings, log_sps: Array, sd: Array, model: RateModel) -> None:
        self._settings, self._model = settings, model
        noise = np.diag(sd**2 + JITTER_SD**2)
        residual = log_sps - model.log_rate(settings.num_workers, settings.batch_size)
        self._shift = float(np.median(residual))
        residual = residual - self._shift
        # two layers, because workers and batch size change rates by large factors, everything else by a little
        self._scales, self._amplitudes = np.ones(settings.main.shape[1]), (0.2, 0.05)
        small = _matern(settings.all, settings.all)

        def evidence(amplitudes: tuple[float, float], large: Array, scales: Array) -> float:
            """Return the log of the marginal likelihood times priors that keep scales and amplitudes near usual values."""
            cholesky = np.linalg.cholesky(amplitudes[0] ** 2 * large + amplitudes[1] ** 2 * small + noise)
            solved = np.linalg.solve(cholesky, residual)
            prior = float((np.log(scales) ** 2).sum()) / 0.5**2
            prior += math.log(amplitudes[0] / 0.2) ** 2 + math.log(amplitudes[1] / 0.05) ** 2
            return float(-(solved @ solved) / 2 - np.log(np.diag(cholesky)).sum() - prior / 2)

        for _ in range(2):
            large = self._large(settings, settings, self._scales)
            self._amplitudes = max(
                itertools.product(_AMPLITUDES, _SMALL_AMPLITUDES), key=lambda each: evidence(each, large, self._scales)
            )
            for dimension in range(len(self._scales)):
                self._scales = max(
                    self._varied(dimension),
                    key=lambda each: evidence(self._amplitudes, self._large(settings, settings, each), each),
                )
        self._cholesky = np.linalg.cholesky(self._covariance(settings, settings) + noise)
        self._weights = np.linalg.solve(self._cholesky.T, np.linalg.solve(self._cholesky, residual))

    def predict(self, settings: Settings) -> tuple[Array, Array]:
        """Return mean and standard deviation of log(rate) for each setting."""
        across = self._covariance(settings, self._settings)
        mean = across @ self._weights + self._shift + self._model.log_rate(settings.num_workers, settings.batch_size)
        solved = np.linalg.solve(self._cholesky, across.T)
        variance = np.maximum(sum(each**2 for each in self._amplitudes) - (solved**2).sum(axis=0), 1e-10)
        return mean, np.sqrt(variance)

    def best_log_sps(self, allowed: Array | None = None) -> tuple[float, float]:
        """Return the highest mean among the measured settings, and its standard deviation.

        Args:
            allowed: which of the settings count, shape (settings,); None is all. If none counts, the mean is -inf.
        """
        mean, sd = self.predict(self._settings)
        mean = mean if allowed is None else np.where(allowed, mean, -math.inf)
        best = int(mean.argmax())
        return float(mean[best]), float(sd[best])

    def expected_gain(self, settings: Settings, best_log_sps: float) -> Array:
        """Return by how much, as a fraction, a trial of each setting is expected to raise the best rate."""
        mean, sd = self.predict(settings)
        gain = improvement(mean, sd, best_log_sps)
        limit = np.log(self._model.known_ceiling(settings.batch_size)) + CEILING_SD
        return np.maximum(gain - improvement(mean, sd, np.clip(limit, best_log_sps, best_log_sps + 50)), 0.0)

    def _varied(self, dimension: int) -> list[Array]:
        varied = []
        for factor in _SCALES:
            scales = self._scales.copy()
            scales[dimension] = factor
            varied.append(scales)
        return varied

    def _covariance(self, first: Settings, second: Settings) -> Array:
        large, small = self._amplitudes
        return large**2 * self._large(first, second, self._scales) + small**2 * _matern(first.all, second.all)

    def _large(self, first: Settings, second: Settings, scales: Array) -> Array:
        return _matern(first.main / scales, second.main / scales)


def _matern(first: Array, second: Array) -> Array:
    """Return the Matern 5/2 kernel with length scale 1, shape (first, second)."""
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :] - 2 * first @ second.T
    distance = np.sqrt(5 * np.maximum(squares, 0.0))
    return np.asarray((1 + distance + distance**2 / 3) * np.exp(-distance))


def improvement(mean: Any, sd: Any, threshold: Any = 0.0) -> Array:
    """Return the expected improvement E[max(f - threshold, 0)] for a normally distributed f."""
    z = (mean - threshold) / sd
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return np.asarray(sd * (z * _normal_cdf(z) + density))


def _normal_cdf(z: Array) -> Array:
    """Return the distribution function of the standard normal; NumPy has no error function, so it goes element by element."""
    return np.asarray((1 + np.vectorize(math.erf, otypes=[float])(z / math.sqrt(2))) / 2)
