"""What a search measures before it draws: the user's own setting, what people use, and the user's setting at other batch sizes.

In the order that the rates measured so far suggest: settings that the model (rate_model.py) expects to be fast come first, and those that
cannot reach half of what was reached already are left out, as are baselines of other batch sizes where the user's own is that far
behind. Both take long exactly there: what loads few samples a second needs seconds for a batch. Rounds at the end measure
the baseline that the answer is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from feedrate.search.session.finalists import FAR, Candidate, is_far
from feedrate.trainables.config import LoaderConfig

EARLY_SEEDS = 4
"""Before the baselines of further batch sizes, which say much the same again."""
TWIN_FRACTION = 0.15
"""Numbers of workers that differ by less are about as fast."""
AS_FAST_FRACTION = 0.8
"""Of the highest expected rate: from there on the given order counts, the model knows no better."""


class Opening:
    """Settings that wait for their turn.

    Args:
        baselines: the user's setting at each batch size, its own first.
        seeds: what is worth trying early, in order.
    """

    def __init__(self, baselines: Sequence[LoaderConfig], seeds: Sequence[LoaderConfig]) -> None:
        self._own = baselines[0]
        self._baselines = list(baselines)
        self._seeds = [config for config in seeds if config not in baselines]
        self._num_early = min(EARLY_SEEDS, len(self._seeds))
        self._rates: list[float] = []
        """Expected of the seeds, which are in the same order; empty while nothing is known."""

    @property
    def ahead(self) -> list[LoaderConfig]:
        """What has not had its turn."""
        return [*self._baselines, *self._seeds]

    def review(
        self,
        measured: Sequence[Candidate],
        predict: Callable[[Sequence[LoaderConfig]], Sequence[float]],
        say: Callable[[str], None],
        rates: Mapping[LoaderConfig, float] | None = None,
    ) -> None:
        """Leave out what is not worth its time, by what is known now.

        Args:
            measured: what trials gave so far.
            predict: settings -> items per second that they should give; empty while nothing is known.
            say: told a sentence on each.
            rates: setting -> items per second of every trial so far, those that were stopped early too. Nothing is expected to be
                slower than its twin was measured.
        """
        best = max(measured, key=lambda each: each.rate.low_sps, default=None)
        own = next((each for each in measured if each.config == self._own), None)
        if self._baselines and own is not None and best is not None and is_far(own, best):
            say(f"left out for now: your own setting at other batch sizes, because {best.name} is more than {FAR:g} times faster")
            self._baselines.clear()
        expected = zip(self._seeds, predict(self._seeds), strict=False) if self._seeds else ()
        self._rates = [max([sps, *_twin_rates(config, rates or {})]) for config, sps in expected]
        if not self._rates or best is None:
            return
        kept = []
        for config, sps in zip(self._seeds, self._rates, strict=True):
            # 0 workers stay: the one setting that is right for whom loading costs nothing
            if sps * FAR >= best.rate.low_sps or config.num_workers == 0:
                kept.append((config, sps))
            else:
                say(f"skipped {config.short()}: expected {sps:,.0f}/s, less than a third of {best.name}")
        self._num_early = max(self._num_early - len(self._seeds) + len(kept), 0)
        self._seeds, self._rates = [config for config, _ in kept], [sps for _, sps in kept]

    def next(self) -> tuple[LoaderConfig, str] | None:
        """The next setting and its origin; None when there is none left."""
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
    """Whether two settings should be about as fast: nearly as many workers at the same batch size, or as many at half or twice of it.

    What else differs (prefetching, pinning, persistent workers) matters little beside these.
    """
    workers, sizes = (first.num_workers, second.num_workers), (first.batch_size or 0, second.batch_size or 0)
    if workers[0] == workers[1]:
        return max(sizes) <= 2 * min(sizes)
    near = max(1.0, TWIN_FRACTION * max(workers))
    return min(workers) > 0 and sizes[0] == sizes[1] and abs(workers[0] - workers[1]) <= near


def _twin_rates(config: LoaderConfig, rates: Mapping[LoaderConfig, float]) -> list[float]:
    """What was measured of the twins of a setting, in items per second."""
    return [sps for other, sps in rates.items() if is_twin(config, other)]
