"""What went through stores, for monitoring: Prometheus and OpenTelemetry, where they are installed.

    from proxystore_integrations import metrics

    metrics.prometheus()      # into prometheus_client's registry: what serves it, serves this, too
    metrics.opentelemetry()   # into the meter provider that the program has set

Each process counts for itself. Names are those of the conventions: ``proxystore_put_bytes_total``,
``proxystore.put.bytes``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from proxystore_core.errors import MissingExtraError
from proxystore_integrations import ledger

__all__ = ["opentelemetry", "prometheus", "totals"]

_COUNTERS = {
    "put.objects": ("Values stored, or found stored.", "1"),
    "put.bytes": ("Bytes of them.", "By"),
    "put.seconds": ("Time spent on storing.", "s"),
    "get.objects": ("Values loaded.", "1"),
    "get.bytes": ("Bytes of them.", "By"),
    "get.seconds": ("Time spent on loading.", "s"),
    "get.cached": ("Values loaded that the process had kept.", "1"),
    "by_value.objects": ("Values that went the engine's own way.", "1"),
    "by_value.bytes": ("Bytes of them, about.", "By"),
}
"""By name: what it counts, and its unit."""

_LABELS = {"put": ("engine", "what"), "get": (), "by_value": ("engine", "why")}


def totals() -> dict[tuple[str, tuple[str, ...]], float]:
    """This process's counters by name and labels; counting begins with the first call of anything here."""
    return dict(ledger.counting().totals)


def prometheus(registry: Any = None) -> None:
    """Let a registry of prometheus_client collect this process's counters.

    Args:
        registry: the library's own by default.

    Raises:
        MissingExtraError: the library is not installed.
    """
    try:
        from prometheus_client import REGISTRY
        from prometheus_client.core import CounterMetricFamily
    except ImportError as error:
        raise _missing("prometheus-client", error) from error
    ledger.counting()

    class Collector:
        def collect(self) -> Iterator[Any]:
            found = totals()
            for name, (text, _) in _COUNTERS.items():
                labels = _LABELS[name.partition(".")[0]]
                family = CounterMetricFamily(f"proxystore_{name.replace('.', '_')}", text, labels=labels)
                for (counter, values), value in found.items():
                    if counter == name:
                        family.add_metric(values, value)
                yield family

    (REGISTRY if registry is None else registry).register(Collector())


def opentelemetry(provider: Any = None) -> None:
    """Let OpenTelemetry observe this process's counters.

    Args:
        provider: a meter provider; the one that the program has set by default.

    Raises:
        MissingExtraError: opentelemetry-api is not installed.
    """
    try:
        from opentelemetry.metrics import Observation, get_meter
    except ImportError as error:
        raise _missing("opentelemetry-api", error) from error
    ledger.counting()
    meter = get_meter("proxystore_integrations", meter_provider=provider)

    def observing(name: str) -> Any:
        labels = _LABELS[name.partition(".")[0]]

        def observe(options: Any) -> Iterable[Any]:
            return [
                Observation(value, dict(zip(labels, values, strict=True)))
                for (counter, values), value in totals().items()
                if counter == name
            ]

        return observe

    for name, (text, unit) in _COUNTERS.items():
        meter.create_observable_counter(f"proxystore.{name}", [observing(name)], unit, text)


def _missing(library: str, error: ImportError) -> MissingExtraError:
    return MissingExtraError(
        f"metrics need {library}, which is not installed ({error})", remedy=f"Run: pip install {library}."
    )
