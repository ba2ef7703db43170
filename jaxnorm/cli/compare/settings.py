"""What `compare` trains: the settings of its rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxnorm.cli.compare.norms import CLASSICAL

# Where nothing is said: the best-known normalizations, where they differ most. It takes a third of
# the time of `FULL`.
SHORT: dict[str, tuple[Any, ...]] = {
    "norms": ("none", "batch", "layer", "group"),
    "batch_sizes": (32, 2),
    "learning_rates": (0.1, 1.0),
}
FULL: dict[str, tuple[Any, ...]] = {
    "norms": tuple(CLASSICAL),
    "batch_sizes": (2, 8, 32),
    "learning_rates": (0.03, 0.1, 0.3, 1.0),
}


class Setting(NamedTuple):
    """One row of the comparison."""

    norm: str
    batch_size: int
    learning_rate: float
    seed: int

    @property
    def text(self) -> str:
        """The setting in words."""
        rate = f"{self.learning_rate:g}"
        return f"{self.norm}, batch size {self.batch_size}, learning rate {rate}"


def list_settings(
    norms: Sequence[str],
    batch_sizes: Sequence[int],
    learning_rates: Sequence[float],
    seeds: Sequence[int],
) -> Iterator[Setting]:
    """Yields the rows in the order of training.

    The normalizations alternate fastest, so that an interrupted run still compares them all.
    """
    for seed, size, rate, norm in itertools.product(seeds, batch_sizes, learning_rates, norms):
        yield Setting(norm, size, rate, seed)
