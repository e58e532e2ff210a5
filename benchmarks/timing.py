"""Samples taken in turns, and what is said of them: medians, spreads, paired ratios."""

from __future__ import annotations

import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = [
    "Absent",
    "Figures",
    "Outcome",
    "Outcomes",
    "Sample",
    "Spread",
    "describe_error",
    "interleave",
    "joined",
]

Figures: TypeAlias = Mapping[str, float]
"""What one sample measured, by name: seconds, bytes or a count."""

Sample: TypeAlias = Callable[[], Figures]
"""Prepares fresh inputs, measures once, cleans up."""


@dataclass(frozen=True)
class Spread:
    """All samples of one figure of one contender, in the order they were taken."""

    samples: tuple[float, ...]
    median: float = field(init=False)
    low: float = field(init=False)
    high: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "median", statistics.median(self.samples))
        object.__setattr__(self, "low", min(self.samples))
        object.__setattr__(self, "high", max(self.samples))

    def over(self, other: Spread) -> float:
        """Median of the ratios self / other, round by round.

        Two samples of one round ran one right after the other, so what disturbs the machine
        for longer than a round falls out of their ratio.
        """
        return statistics.median(
            mine / theirs if theirs else float("inf")
            for mine, theirs in zip(self.samples, other.samples, strict=False)
        )

    def beyond(self, other: Spread) -> float:
        """Median of the differences self - other, round by round."""
        return statistics.median(
            mine - theirs for mine, theirs in zip(self.samples, other.samples, strict=False)
        )


@dataclass(frozen=True)
class Absent:
    """Why a contender has no figure here."""

    reason: str


Outcome: TypeAlias = Spread | Absent


def describe_error(error: BaseException) -> str:
    """One line of an exception, with paths left out: reports are published."""
    lines = str(error).strip().splitlines() or [""]
    text = re.sub(r"\(?(?:/[\w.\-+@]+){2,}/?\)?", "<path>", lines[0])
    return f"{type(error).__name__}: {text}"[:160].rstrip(": ")


@dataclass(frozen=True)
class Outcomes:
    """What came of an interleaved run."""

    order: tuple[str, ...]
    spreads: Mapping[str, Mapping[str, Spread]]
    failed: Mapping[str, Absent]

    def of(self, figure: str = "") -> dict[str, Outcome]:
        """The outcome of every contender that measures this figure or failed, in order."""
        found: dict[str, Outcome] = {**self.spreads.get(figure, {}), **self.failed}
        return {name: found[name] for name in self.order if name in found}


def interleave(
    contenders: Mapping[str, Sample | Absent], rounds: int, *, warm: int = 1, budget: float = 12.0
) -> Outcomes:
    """Sample the contenders in turns, each round in a random order that is the same in every run.

    What one leaves behind (caches, freed memory, threads that still wind down) burdens the next one: in a
    fixed order that would always be the same one. A contender that raises is reported absent with its
    reason and the others go on. One that has used up its time sits out the later rounds, once it has been
    sampled twice.

    Args:
        contenders: what to sample, in order, by contender's name.
        rounds: rounds that count.
        warm: rounds before them that do not.
        budget: each contender's time, in seconds.
    """
    failed = {name: sample for name, sample in contenders.items() if isinstance(sample, Absent)}
    taken: dict[str, dict[str, list[float]]] = {}
    spent = dict.fromkeys(contenders, 0.0)
    shuffle = random.Random(0)
    for turn in range(-warm, rounds):
        for name in shuffle.sample(list(contenders), len(contenders)):
            sample = contenders[name]
            if name in failed or isinstance(sample, Absent) or (turn >= 2 and spent[name] > budget):
                continue
            begin = time.perf_counter()
            try:
                figures = sample()
            except Exception as error:
                failed[name] = Absent(describe_error(error))
                print(f"      {name}: {failed[name].reason}", file=sys.stderr)
                continue
            spent[name] += time.perf_counter() - begin
            if turn >= 0:
                for figure, value in figures.items():
                    taken.setdefault(figure, {}).setdefault(name, []).append(value)
    spreads = {
        figure: {name: Spread(tuple(values)) for name, values in by_name.items()}
        for figure, by_name in taken.items()
    }
    return Outcomes(tuple(contenders), spreads, failed)


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """One outcome of several that the same contenders had one after another.

    Who has failed in one of them has failed. Of each, only the rounds that all others took count: what is
    set beside each other later are samples of the same round.
    """
    failed = {name: absent for part in parts for name, absent in part.failed.items()}
    taken: dict[str, dict[str, list[float]]] = {}
    for part in parts:
        for figure, by_name in part.spreads.items():
            there = {name: spread.samples for name, spread in by_name.items() if name not in failed}
            rounds = min(map(len, there.values()), default=0)
            for name, samples in there.items():
                taken.setdefault(figure, {}).setdefault(name, []).extend(samples[:rounds])
    spreads = {
        figure: {name: Spread(tuple(values)) for name, values in by_name.items()}
        for figure, by_name in taken.items()
    }
    return Outcomes(parts[0].order, spreads, failed)
