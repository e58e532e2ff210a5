"""One line of the report, and the targets it is held to: all computed from samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from benchmarks.timing import Absent, Outcome, Spread

__all__ = ["Plan", "Row", "Verdict", "amount", "size_name"]


@dataclass(frozen=True)
class Plan:
    """What was asked for on the command line.

    Args:
        sizes: sizes of arrays, in bytes, ascending.
        repeat: rounds of an expensive sample; cheap ones take more.
    """

    sizes: tuple[int, ...]
    repeat: int

    def rounds(self, size: int) -> int:
        """Small arrays are cheap to sample and noisier: they get more rounds."""
        return self.repeat * (3 if size <= 1_000_000 else 1)

    def sized(self) -> Iterator[tuple[int, int]]:
        """Every size with its rounds."""
        return ((size, self.rounds(size)) for size in self.sizes)


@dataclass(frozen=True)
class Verdict:
    """A target and what was reached; ``met`` is None where a contender was absent."""

    claim: str
    target: str
    reached: str
    met: bool | None


@dataclass
class Row:
    """One thing measured for several contenders.

    Args:
        work: what was measured, in a few words; rows of one work make one table.
        unit: "s", "B" or "count".
        outcomes: by contender.
        size: bytes of the array concerned, when the work has a size.
    """

    work: str
    unit: str
    outcomes: Mapping[str, Outcome]
    size: int | None = None
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The work with its size."""
        return self.work if self.size is None else f"{self.work}, {size_name(self.size)}"

    def median(self, contender: str) -> float | None:
        """The contender's median, or None when it is absent."""
        outcome = self.outcomes.get(contender)
        return outcome.median if isinstance(outcome, Spread) else None

    def at_most(self, contender: str, limit: float, *, claim: str = "") -> None:
        """Hold the contender's median to a limit in the row's unit."""
        self._judge(
            claim,
            (contender,),
            f"<= {amount(limit, self.unit)}",
            lambda mine: (amount(mine.median, self.unit), mine.median <= limit),
        )

    def at_most_times(self, contender: str, other: str, factor: float, *, claim: str = "") -> None:
        """Hold the contender to ``factor`` times what the other takes."""
        self._judge(
            claim,
            (contender, other),
            f"<= {factor:g}x {other}",
            lambda mine, theirs: (f"{mine.over(theirs):.2f}x", mine.over(theirs) <= factor),
        )

    def times_faster(self, contender: str, other: str, factor: float, *, claim: str = "") -> None:
        """Hold the contender to be at least ``factor`` times as fast as the other."""
        self._judge(
            claim,
            (contender, other),
            f">= {factor:g}x as fast as {other}",
            lambda mine, theirs: (f"{theirs.over(mine):.2f}x", theirs.over(mine) >= factor),
        )

    def at_most_beyond(self, contender: str, other: str, limit: float, *, claim: str = "") -> None:
        """Hold the contender to at most ``limit`` more than the other, in the row's unit."""
        self._judge(
            claim,
            (contender, other),
            f"<= {amount(limit, self.unit)} more than {other}",
            lambda mine, theirs: (
                f"{mine.beyond(theirs) * 1e6:+.1f} us" if self.unit == "s" else f"{mine.beyond(theirs):+g}",
                mine.beyond(theirs) <= limit,
            ),
        )

    def _judge(self, claim: str, contenders: tuple[str, ...], target: str, judge: object) -> None:
        assert callable(judge)
        spreads = []
        for name in contenders:
            outcome = self.outcomes.get(name, Absent("not measured"))
            if isinstance(outcome, Absent):
                self.verdicts.append(Verdict(claim or self.title, target, f"{name} absent", None))
                return
            spreads.append(outcome)
        reached, met = judge(*spreads)
        self.verdicts.append(Verdict(claim or self.title, target, reached, bool(met)))


def size_name(size: int) -> str:
    """10000 -> "10 kB"."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:g} {unit}"
    return f"{size} B"


def amount(value: float, unit: str) -> str:
    """A value with a unit that fits: three digits."""
    if unit == "count":
        return f"{value:g}"
    scales = {
        "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")),
        "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    }[unit]
    factor, name = next((scale for scale in scales if abs(value) >= scale[0]), scales[-1])
    scaled = value / factor
    return f"{scaled:.0f} {name}" if abs(scaled) >= 999.5 else f"{scaled:.3g} {name}"
