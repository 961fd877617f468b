"""Prometheus metrics of the endpoint.

Every process counts in its own registry. `GET /metrics` asks all of them and adds the label `process`: one
scrape of one address sees the whole endpoint.
"""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rayembed.serving.messages import Embeddings

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)


class ReplicaMetrics:
    """What one model replica counts."""

    def __init__(self, model: str):
        self.registry = CollectorRegistry()

        def labelled(kind: type, name: str, description: str, **options):
            metric = kind(f"rayembed_{name}", description, ["model"], registry=self.registry, **options)
            return metric.labels(model)

        self.queued_tokens: Gauge = labelled(Gauge, "queued_tokens", "Tokens accepted and not yet answered")
        self.tokens_per_second: Gauge = labelled(Gauge, "tokens_per_second", "Recent speed of the model")
        self.batch_tokens: Histogram = labelled(
            Histogram, "batch_tokens", "Tokens of one forward pass, without padding", buckets=_TOKENS
        )
        self.wait_seconds: Histogram = labelled(
            Histogram, "wait_seconds", "From a request's admission to a text's batch", buckets=_SECONDS
        )
        self.tokenize_seconds: Histogram = labelled(
            Histogram, "tokenize_seconds", "Tokenising of one request", buckets=_SECONDS
        )
        self.compute_seconds: Histogram = labelled(
            Histogram, "compute_seconds", "Forward pass of one batch", buckets=_SECONDS
        )
        self.inputs: Counter = labelled(Counter, "inputs", "Inputs answered")
        self.tokens: Counter = labelled(Counter, "tokens", "Tokens of the inputs answered")
        self.truncated: Counter = labelled(Counter, "truncated_inputs", "Inputs cut to the maximum length")
        self.cache_hits: Counter = labelled(Counter, "cache_hits", "Inputs answered from the cache")

    def count(self, answer: Embeddings) -> None:
        """Count an answered request."""
        self.inputs.inc(len(answer.vectors))
        self.tokens.inc(answer.tokens)
        self.truncated.inc(answer.truncated)
        self.cache_hits.inc(answer.cached)

    def collect(self) -> list[Metric]:
        """Present values, in a form that travels between processes."""
        return list(self.registry.collect())


class IngressMetrics:
    """What one HTTP front end counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.responses = Counter(
            "rayembed_responses", "Responses", ["route", "model", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "rayembed_request_seconds",
            "From the request's headers to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.retries = Counter(
            "rayembed_retries",
            "Requests sent again because a replica died or failed",
            ["model"],
            registry=self.registry,
        )

    def collect(self) -> list[Metric]:
        """Present values, in a form that travels between processes."""
        return list(self.registry.collect())


class _Joined(Collector):
    def __init__(self, processes: Sequence[tuple[str, Sequence[Metric]]]):
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for process, metrics in self._processes:
            for metric in metrics:
                family = families.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit)
                )
                for sample in metric.samples:
                    labels = {**sample.labels, "process": process}
                    family.samples.append(sample._replace(labels=labels))
        return iter(families.values())


def exposition(processes: Sequence[tuple[str, Sequence[Metric]]]) -> bytes:
    """Prometheus text of several processes' metrics, told apart by the label `process`."""
    registry = CollectorRegistry()
    registry.register(_Joined(processes))
    return generate_latest(registry)
