"""What a node counts, and how Prometheus reads it: plain integers bumped where things happen, rendered on a scrape.

`prometheus_client.Counter.inc` takes a lock and about 0.5 us; an attribute's `+= 1` takes 20 ns. So the counters are
attributes, histograms are arrays, gauges are functions that a scrape calls, and one collector turns all of it into
families. Names and units follow Prometheus: `kvstore_` first, base units (seconds, bytes), counters end in `_total`.

Invariant: every number has one writer (the loop, or one of the writer threads for its own histogram); a scrape reads
           on the loop and may see a histogram's sum one observation ahead of its buckets, never a torn number.
Invariant: one `Metrics`, with a registry of its own, a node: many nodes may live in one process.
Invariant: label values come from fixed sets (codes, routes, roles, queue names), never from what a client sends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kvstore import __version__

LATENCY_BOUNDS: tuple[float, ...] = (
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Seconds. From a page-cache fsync to a client's patience."""
SIZE_BOUNDS: tuple[float, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Things in one batch."""


class Histogram:
    """Counts by bucket. `observe` costs about 0.3 us; observe a batch once, with `times`."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = LATENCY_BOUNDS) -> None:
        assert list(bounds) == sorted(set(bounds))
        self.bounds = bounds  # upper, inclusive
        self.counts = [0] * (len(bounds) + 1)  # not cumulative; the last is +Inf
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, fraction: float) -> float:
        """The upper bound of the bucket in which the quantile lies; 0 when nothing was observed. For status pages."""
        rank = fraction * self.count
        seen = 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if count and seen >= rank:
                return bound
        return self.bounds[-1] if self.count else 0.0

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus' form: (le, count of everything up to it)."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, total))
        return buckets


# (attribute of Metrics, name without _total, help)
_COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("proposals", "kvstore_raft_proposals", "Commands that a leader here has proposed to its Raft group."),
    ("proposals_dropped", "kvstore_raft_proposals_dropped",
     "Commands that were refused before the proposal because too much was waiting (OVERLOADED)."),
    ("proposals_expired", "kvstore_raft_proposals_expired",
     "Commands whose deadline passed after the proposal; their outcome was told as unknown."),
    ("commits", "kvstore_raft_commits", "Log entries that became committed on replicas here."),
    ("applies", "kvstore_raft_applies", "Commands that replicas here have applied to the state machine."),
    ("reads_linearizable", "kvstore_reads_linearizable", "Reads answered after a ReadIndex round or under a lease."),
    ("reads_stale", "kvstore_reads_stale", "Reads answered from a replica's own state within the caller's staleness."),
    ("leader_changes", "kvstore_raft_leader_changes", "Times that a replica here saw another leader than before."),
    ("elections", "kvstore_raft_elections", "Elections that replicas here have started (after PreVote)."),
    ("raft_messages_sent", "kvstore_raft_messages_sent", "Raft messages handed to the transport."),
    ("raft_messages_received", "kvstore_raft_messages_received", "Raft messages taken from the transport."),
    ("raft_messages_dropped", "kvstore_raft_messages_dropped",
     "Raft messages that were dropped because a peer's queue was full or its link was down; Raft repeats them."),
    ("snapshots_sent", "kvstore_snapshots_sent", "Snapshots that were sent whole to another node."),
    ("snapshots_installed", "kvstore_snapshots_installed", "Snapshots that were installed here."),
    ("splits", "kvstore_shard_splits", "Splits that were applied here, by every replica of the shard."),
    ("sessions_expired", "kvstore_sessions_expired", "Mutations refused with SESSION_EXPIRED while applying."),
    ("clock_jumps", "kvstore_clock_jumps",
     "Times that the wall clock moved by more than the real time that had passed allows; stamps absorb it."),
    ("damaged_records", "kvstore_storage_damaged_records", "Stored records that did not match their checksum."),
    ("stream_operations", "kvstore_stream_operations", "Operations that were answered over client streams."),
    ("stream_bytes_received", "kvstore_stream_received_bytes", "Bytes of client stream messages received."),
    ("stream_bytes_sent", "kvstore_stream_sent_bytes", "Bytes of client stream messages sent."),
    ("stream_malformed", "kvstore_stream_malformed",
     "Client streams that were closed because of what they sent (not MessagePack, no Hello, over a limit)."),
    ("connections_refused", "kvstore_http_connections_refused",
     "Connections closed at once because CONNECTIONS_MAX were open."),
    ("connections_cut", "kvstore_http_connections_cut",
     "Connections closed because the peer sent no whole request head, or read none of its answer, in time."),
)  # fmt: skip

# (attribute of Metrics, name, help)
_HISTOGRAMS: tuple[tuple[str, str, str], ...] = (
    ("commit_seconds", "kvstore_raft_commit_seconds", "From the proposal of a command to its result, on the leader."),
    ("fsync_seconds", "kvstore_log_fsync_seconds", "One fsynced commit of the log, for all groups together."),
    ("flush_seconds", "kvstore_state_flush_seconds", "One flush of applied state to disk."),
    ("apply_seconds", "kvstore_apply_seconds", "Applying one batch of committed entries, on the loop."),
    ("loop_stall_seconds", "kvstore_loop_stall_seconds", "How late the event loop ran a timer that is due each tick."),
    ("log_batch_entries", "kvstore_log_batch_entries", "Entries in one fsynced commit of the log."),
    ("entry_commands", "kvstore_raft_entry_commands", "Commands in one proposed entry."),
)

# (name, label, help); a source gives {label value: number}
_GAUGES: Mapping[str, tuple[str, str]] = {
    "kvstore_queue_depth": ("queue", "Things that wait in a bounded queue: staged, reads, log, flush, peer, ..."),
    "kvstore_queue_bytes": ("queue", "Bytes that wait in a bounded queue."),
    "kvstore_peer_bytes": ("direction", "Bytes of frames sent to and received from other nodes since the start."),
    "kvstore_raft_groups": ("role", "Raft groups with a replica here by its role; `hibernating` counts sleeping ones."),
    "kvstore_raft_applied_lag": ("shard", "Committed entries that a replica here has not applied yet."),
    "kvstore_storage_bytes": ("kind", "Sizes on disk: log_file, log_used, state_file, state_used, disk_free, ..."),
    "kvstore_memory_bytes": ("kind", "Bytes held by parts of the node: tables, session_answers, staged."),
    "kvstore_members": ("state", "Members of the cluster by state: alive, suspect, dead, left."),
    "kvstore_operators": ("state", "Operators of the placement driver, running and lately ended; only where it is."),
    "kvstore_shards": ("kind", "Shards with a replica here, those led here, and those led here that can't be split."),
    "kvstore_gossip_members": ("state", "Nodes that gossip knows, by what it believes of them; this one included."),
    "kvstore_gossip_health": ("kind", "score: 0 while this node keeps up with gossip; each step lengthens its probes."),
    "kvstore_gossip_packets": ("direction", "Datagrams of gossip sent, and received from members."),
    "kvstore_gossip_bytes": ("direction", "Bytes of their payloads."),
    "kvstore_gossip_hints": ("kind", "Leader hints: held, led here, waiting to be told, malformed, ..."),
    "kvstore_gossip_refused": ("reason", "Datagrams and records of gossip that were dropped: forged, replayed, ..."),
    "kvstore_gossip_send_errors": ("error", "Datagrams that could not be sent, by the system's error."),
    "kvstore_gossip_events": ("kind", "What happened in gossip: probes, probes_failed, suspicions, refutations, ..."),
    "kvstore_http_connections": ("kind", "Open connections: all, and those that are client streams."),
}

_CUMULATIVE = frozenset(  # read from a source like a gauge, but only ever rising: counters
    {
        "kvstore_gossip_bytes",
        "kvstore_gossip_events",
        "kvstore_gossip_packets",
        "kvstore_gossip_refused",
        "kvstore_gossip_send_errors",
        "kvstore_peer_bytes",
    }
)

GaugeSource = Callable[[], Mapping[str, float]]


class Metrics:
    """Everything one node counts. The attributes are documented by the tables above (`_COUNTERS`, `_HISTOGRAMS`)."""

    def __init__(self, *, node: str, process: bool = True) -> None:
        self.node = node
        self.proposals = 0
        self.proposals_dropped = 0
        self.proposals_expired = 0
        self.commits = 0
        self.applies = 0
        self.reads_linearizable = 0
        self.reads_stale = 0
        self.leader_changes = 0
        self.elections = 0
        self.raft_messages_sent = 0
        self.raft_messages_received = 0
        self.raft_messages_dropped = 0
        self.snapshots_sent = 0
        self.snapshots_installed = 0
        self.splits = 0
        self.sessions_expired = 0
        self.clock_jumps = 0
        self.damaged_records = 0
        self.stream_operations = 0
        self.stream_bytes_received = 0
        self.stream_bytes_sent = 0
        self.stream_malformed = 0
        self.connections_refused = 0
        self.connections_cut = 0

        self.commit_seconds = Histogram()
        self.fsync_seconds = Histogram()
        self.flush_seconds = Histogram()
        self.apply_seconds = Histogram()
        self.loop_stall_seconds = Histogram()
        self.log_batch_entries = Histogram(SIZE_BOUNDS)
        self.entry_commands = Histogram(SIZE_BOUNDS)

        # (frame type, code name or "OK") -> answers
        self.stream_requests: dict[tuple[str, str], int] = {}
        # (method, route, status, code name or "OK") -> answers
        self.http_requests: dict[tuple[str, str, int, str], int] = {}
        self.http_seconds: dict[str, Histogram] = {}  # by route

        self._sources: dict[str, list[GaugeSource]] = {name: [] for name in _GAUGES}
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_NodeCollector(self))
        if process:
            ProcessCollector(registry=self.registry)

    def add_gauge(self, name: str, source: GaugeSource) -> None:
        """Have each scrape ask `source` for the gauge's values. It runs on the loop and must be quick."""
        assert name in _GAUGES, f"{name} is not a gauge of base/metrics.py"
        self._sources[name].append(source)

    def count_stream(self, kind: str, code: str) -> None:
        key = (kind, code)
        self.stream_requests[key] = self.stream_requests.get(key, 0) + 1

    def count_http(self, *, method: str, route: str, status: int, code: str, seconds: float | None) -> None:
        """`seconds` None: there is no time to tell (a WebSocket that has ended, a request that was none)."""
        key = (method, route, status, code)
        self.http_requests[key] = self.http_requests.get(key, 0) + 1
        if seconds is None:
            return
        histogram = self.http_seconds.get(route)
        if histogram is None:
            histogram = self.http_seconds[route] = Histogram()
        histogram.observe(seconds)

    def gauge(self, name: str) -> dict[str, float]:
        """The values that a scrape would give now; equal labels of several sources are added up."""
        values: dict[str, float] = {}
        for source in self._sources[name]:
            for label, value in source().items():
                values[label] = values.get(label, 0) + value
        return values


class _NodeCollector(Collector):
    """Turns one node's `Metrics` into Prometheus' families, at the time of the scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics
        build = GaugeMetricFamily("kvstore_build_info", "Always 1; what runs here.", labels=("version", "node"))
        build.add_metric((__version__, metrics.node), 1)
        yield build
        for attribute, name, text in _COUNTERS:
            yield CounterMetricFamily(name, text, value=getattr(metrics, attribute))
        for attribute, name, text in _HISTOGRAMS:
            histogram: Histogram = getattr(metrics, attribute)
            yield HistogramMetricFamily(name, text, buckets=histogram.cumulative(), sum_value=histogram.sum)
        for name, (label, text) in _GAUGES.items():
            family = CounterMetricFamily if name in _CUMULATIVE else GaugeMetricFamily
            values = family(name, text, labels=(label,))
            for value, number in sorted(metrics.gauge(name).items()):
                values.add_metric((value,), number)
            yield values
        yield from self._requests()

    def _requests(self) -> Iterator[Metric]:
        metrics = self._metrics
        stream = CounterMetricFamily(
            "kvstore_stream_requests",
            "Frames that were answered over client streams, by type and code (OK: see each operation's result).",
            labels=("type", "code"),
        )
        for (kind, code), count in sorted(metrics.stream_requests.items()):
            stream.add_metric((kind, code), count)
        yield stream
        http = CounterMetricFamily(
            "kvstore_http_requests",
            "HTTP requests that were answered, by method, route, status and error code.",
            labels=("method", "route", "status", "code"),
        )
        for (method, route, status, code), count in sorted(metrics.http_requests.items()):
            http.add_metric((method, route, str(status), code), count)
        yield http
        seconds = HistogramMetricFamily(
            "kvstore_http_request_seconds",
            "From a whole request head to the answer's bytes, by route.",
            labels=("route",),
        )
        for route, histogram in sorted(metrics.http_seconds.items()):
            seconds.add_metric((route,), buckets=histogram.cumulative(), sum_value=histogram.sum)
        yield seconds
