"""`Budget`: how much time a training may lose to settings that are slower than the best one."""

from __future__ import annotations

from dataclasses import dataclass, field

FRACTION, MOST_S, LEAST_S = 0.02, 300.0, 10.0


@dataclass(slots=True)
class Budget:
    """The time that may be lost, and the time that was lost.

    Only lost time counts: a measurement of the best setting costs nothing, because the training goes on meanwhile.
    """

    fraction: float = FRACTION
    """Share of the training's duration that may be lost: of the time until now and to the end of the present epoch, since more is not certain."""
    most_s: float = MOST_S
    least_s: float = LEAST_S
    """Time that each look may lose in any case: the length of a training is not known in advance, only that of its epoch. Before another
    look, waiting has cost the training about as much."""
    num_looks: int = 1
    """How often the training looks for a better setting: once at its beginning, and again whenever waiting has grown."""
    _lost_s: dict[int, float] = field(default_factory=dict)
    """By setting. What one gains over the best that was known does not make up for another."""

    @classmethod
    def of(cls, fraction: float | None) -> Budget:
        """Return the budget of a share of the training's time (0..1); None is the default, and 0 lets nothing be tried."""
        if fraction is None:
            return cls()
        return cls(fraction=fraction, least_s=LEAST_S if fraction else 0.0)

    @property
    def lost_s(self) -> float:
        """The time that was lost so far."""
        return sum(max(each, 0.0) for each in self._lost_s.values())

    def lose(self, num_workers: int, taken_s: float, num_batches: int, best_batch_s: float) -> None:
        """Count what a measurement took, beyond the time that the best known setting takes for as many batches."""
        self._lost_s[num_workers] = self._lost_s.get(num_workers, 0.0) + taken_s - num_batches * best_batch_s

    def allowed_s(self, foreseen_s: float) -> float:
        """Return how many seconds the measurements may cost the training, over the whole of it.

        Args:
            foreseen_s: how long the training certainly takes: until now, and to the end of its epoch.
        """
        return min(max(self.fraction * foreseen_s, self.num_looks * self.least_s), self.most_s)

    def is_spent(self, foreseen_s: float, share: float = 1.0) -> bool:
        """Return whether no more time may be lost; `share` is the part of the budget that counts."""
        return self.lost_s >= share * self.allowed_s(foreseen_s)
