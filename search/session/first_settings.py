"""The settings that a search measures before the sampler draws any: the user's own, commonly used ones, and baselines at other batch sizes.

The rates measured so far decide the order. Settings that the model (rate_model.py) expects to be fast come first. A setting is skipped
if it has workers and is expected to be more than FAR times slower than the best one so far. Baselines at other batch sizes are skipped if
the user's own setting is that far behind. Skipping saves most time in exactly these cases, because a slow loader needs seconds for a batch.
Rounds at the end measure the baseline that the answer is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from feedrate.search.session.finalists import FAR, Candidate, is_far
from feedrate.trainables.config import LoaderConfig

EARLY_SEEDS = 4
"""Number of seeds that are tried before the baselines of further batch sizes, because these tell little more than the first one."""
TWIN_FRACTION = 0.15
"""Two settings whose numbers of workers differ by less than this fraction should be about as fast."""
AS_FAST_FRACTION = 0.8
"""Settings expected to reach this fraction of the highest expected rate keep their given order: the model is not more precise."""


class Opening:
    """The queue of settings to try first.

    A seed here is a setting that is worth trying early, not the seed of a random number generator.

    Args:
        baselines: the user's setting at each batch size, starting with its own batch size.
        seeds: settings that are worth trying early, in order.
    """

    def __init__(self, baselines: Sequence[LoaderConfig], seeds: Sequence[LoaderConfig]) -> None:
        self._own = baselines[0]
        self._baselines = list(baselines)
        self._seeds = [config for config in seeds if config not in baselines]
        self._num_early = min(EARLY_SEEDS, len(self._seeds))
        self._rates: list[float] = []
        """Expected rates of the seeds, in the same order; empty while nothing is known."""

    @property
    def ahead(self) -> list[LoaderConfig]:
        """The settings that have not been handed out yet."""
        return [*self._baselines, *self._seeds]

    def leave_out(self, is_left_out: Callable[[LoaderConfig], bool]) -> None:
        """Skip the seeds for which `is_left_out` returns True."""
        kept = [config for config in self._seeds if not is_left_out(config)]
        self._num_early = max(self._num_early - len(self._seeds) + len(kept), 0)
        self._seeds, self._rates = kept, []

    def review(
        self,
        measured: Sequence[Candidate],
        predict: Callable[[Sequence[LoaderConfig]], Sequence[float]],
        say: Callable[[str], None],
        rates: Mapping[LoaderConfig, float] | None = None,
    ) -> None:
        """Skip the settings that are not worth their time, judged by the rates measured so far.

        Args:
            measured: the settings that trials measured to their end.
            predict: returns the expected items per second of settings; empty while nothing is known.
            say: called with a sentence about what is skipped.
            rates: setting -> items per second of every trial so far, including trials that were stopped early. No setting is
                expected to be slower than its twin (`is_twin`) was measured.
        """
        best = max(measured, key=lambda each: each.rate.low_sps, default=None)
        own = next((each for each in measured if each.config == self._own), None)
        if self._baselines and own is not None and best is not None and is_far(own, best):
            say(f"left out for now: your own setting at other batch sizes, because at its own it is more than {FAR:g} times slower than {best.name}")
            self._baselines.clear()
        expected = zip(self._seeds, predict(self._seeds), strict=False) if self._seeds else ()
        self._rates = [max([sps, *_twin_rates(config, rates or {})]) for config, sps in expected]
        if not self._rates or best is None:
            return
        kept = []
        for config, sps in zip(self._seeds, self._rates, strict=True):
            # 0 workers are never skipped: that is the right setting if loading costs nothing
            if sps * FAR >= best.rate.low_sps or config.num_workers == 0:
                kept.append((config, sps))
            else:
                say(f"skipped {config.short()}: expected {sps:,.0f}/s, less than a third of the rate of {best.name}")
        self._num_early = max(self._num_early - len(self._seeds) + len(kept), 0)
        self._seeds, self._rates = [config for config, _ in kept], [sps for _, sps in kept]

    def next(self) -> tuple[LoaderConfig, str] | None:
        """Return the next setting and its origin; None if none is left."""
        is_first = bool(self._baselines) and self._baselines[0] == self._own
        if self._baselines and (is_first or not self._seeds or not self._num_early):
            return self._baselines.pop(0), "baseline"
        if not self._seeds:
            return None
        self._num_early = max(self._num_early - 1, 0)
        enough_sps = AS_FAST_FRACTION * max(self._rates, default=0.0)
        first = next((index for index, sps in enumerate(self._rates) if sps >= enough_sps), 0)
        self._rates = self._rates[:first] + self._rates[first + 1 :]
        return self._seeds.pop(first), "seed"


def is_twin(first: LoaderConfig, second: LoaderConfig) -> bool:
    """Return whether two settings should be about as fast.

    They have nearly as many workers at the same batch size, or as many workers at batch sizes that differ by a factor of at most 2.
    Other differences (prefetching, pinning, persistent workers) matter little in comparison.
    """
    workers, sizes = (first.num_workers, second.num_workers), (first.batch_size or 0, second.batch_size or 0)
    if workers[0] == workers[1]:
        return max(sizes) <= 2 * min(sizes)
    near = max(1.0, TWIN_FRACTION * max(workers))
    return min(workers) > 0 and sizes[0] == sizes[1] and abs(workers[0] - workers[1]) <= near


def _twin_rates(config: LoaderConfig, rates: Mapping[LoaderConfig, float]) -> list[float]:
    """Return the measured rates of the twins of a setting, in items per second."""
    return [sps for other, sps in rates.items() if is_twin(config, other)]
