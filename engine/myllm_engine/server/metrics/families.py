"""Write numbers as Prometheus' metric families."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.utils import floatToGoString

from ...stats import Histogram

Labels = Mapping[str, str]


def gauge(name: str, help: str, value: float, labels: Labels) -> Metric:
    """Return a value that goes up and down."""
    family = GaugeMetricFamily(name, help, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def counter(
    name: str, help: str, values: float | Mapping[str, float], labels: Labels, by: str | None = None
) -> Metric:
    """Return a value that only goes up; with `by`, one for each value of that label.

    Its name in the text ends with `_total`.
    """
    family = CounterMetricFamily(name, help, labels=[*labels, *([by] if by else [])])
    return _add(family, values, labels)


def bare_counter(
    name: str, help: str, values: float | Mapping[str, float], labels: Labels, by: str | None = None
) -> Metric:
    """Do the same for a name without `_total`, as TGI's; the format has no type for such a one."""
    family = UnknownMetricFamily(name, help, labels=[*labels, *([by] if by else [])])
    return _add(family, values, labels)


def histogram(name: str, help: str, values: Histogram | Mapping[str, Histogram], labels: Labels) -> Metric:
    """Return a histogram; a mapping has one for each value of the label `method`."""
    by_method = values if isinstance(values, Mapping) else {"": values}
    names = [*labels, *([] if isinstance(values, Histogram) else ["method"])]
    family = HistogramMetricFamily(name, help, labels=names)
    for method, each in by_method.items():
        buckets, seen = [], 0
        for bound, count in zip((*each.bounds, float("inf")), each.counts, strict=True):
            seen += count
            buckets.append((floatToGoString(bound), seen))
        family.add_metric([*labels.values(), *([method] if method else [])], buckets, each.sum)
    return family


def _add(
    family: CounterMetricFamily | UnknownMetricFamily, values: float | Mapping[str, float], labels: Labels
) -> Metric:
    if isinstance(values, Mapping):
        for key, value in values.items():
            family.add_metric([*labels.values(), key], value)
    else:
        family.add_metric(list(labels.values()), values)
    return family
