"""Goal: the pure core works over real sockets, and nothing that arrives there harms it. Method: a few drivers on the
loopback, on both kinds of event loop; floods from a socket that is no member's.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from kvstore.base.errors import Invalid, StartRefused
from kvstore.base.metrics import Metrics
from kvstore.gossip.endpoint import WAITING_MAX, UdpEndpoint, bind_datagrams
from kvstore.gossip.events import MemberChanged
from kvstore.gossip.member import MemberState
from kvstore.gossip.resolver import NAMES_MAX, text_of
from kvstore.gossip.seal import DATAGRAM_BYTES_MAX, Seal
from tests.gossip.rig import CLUSTER, FAST, IDS, Node, bind_both, start_all, stop_all, until, with_settings

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

SECRET, OTHER = b"s" * 32, b"t" * 32
ALIVE, SUSPECT, DEAD, LEFT = MemberState


@asynccontextmanager
async def cluster(count: int = 3, **options: object) -> AsyncIterator[list[Node]]:
    first = Node("n1", **options)  # type: ignore[arg-type]
    others = [Node(f"n{number}", seeds=[first.address], **options) for number in range(2, count + 1)]  # type: ignore[arg-type]
    nodes = [first, *others]
    try:
        await start_all(*nodes)
        yield nodes
    finally:
        await stop_all(*nodes)


def told(node: Node, name: str) -> list[MemberState]:
    """Which states of the member the node was told of."""
    return [event.new.state for event in node.events if isinstance(event, MemberChanged) and event.new.name == name]


@pytest.mark.parametrize("secrets", [(), (SECRET,)])
async def test_three_find_each_other_and_one_leaves(secrets: tuple[bytes, ...]) -> None:
    async with cluster(secrets=secrets) as (one, two, three):
        await three.stop(leave=True)
        await until(lambda: one.state("n3") == two.state("n3") == LEFT)
        for node in (one, two):
            assert told(node, "n3") == [ALIVE, LEFT]
            assert not node.driver.alive(three.id)
            assert node.driver.refused() == {}


async def test_a_crash_is_suspected_and_then_told() -> None:
    async with cluster() as (one, two, three):
        await three.stop()
        await until(lambda: one.state("n3") == two.state("n3") == DEAD)
        assert told(one, "n3") == told(two, "n3") == [ALIVE, SUSPECT, DEAD]


async def test_a_timer_that_is_due_at_once_is_compared_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time may pass between the asking and the setting; uvloop's handle of what is due by then can't tell when."""
    async with cluster(1) as (one,):
        assert one.driver._timer is not None
        one.driver._timer.cancel()
        one.driver._timer = None
        past = one.driver.now() - 1.0
        monkeypatch.setattr(one.driver, "now", lambda: past)
        monkeypatch.setattr(one.driver._swim, "next_at", lambda: past)
        one.driver.wake()
        first = one.driver._timer
        one.driver.wake()
        assert one.driver._timer is first


async def test_who_is_cut_off_for_a_while_refutes() -> None:
    """Its datagrams are lost for as long as it takes to be suspected; TCP, which would save it, too."""
    async with cluster() as (one, two, three):
        for node in (one, two):
            node.driver._push_pull._open = False
        three.endpoint.cut = True
        three.driver._push_pull._open = False
        await until(lambda: SUSPECT in (one.state("n3"), two.state("n3")))
        three.endpoint.cut = False
        await until(lambda: one.state("n3") == two.state("n3") == ALIVE)
        assert DEAD not in told(one, "n3") + told(two, "n3")
        member = one.driver.member(three.id)
        assert member is not None
        assert member.incarnation > 1_000_000  # it has refuted


async def test_tcp_saves_whom_datagrams_do_not_reach() -> None:
    """A firewall that lets no UDP through: nobody is suspected, however long that lasts."""
    async with cluster() as (one, two, three):
        three.endpoint.cut = True
        saved = one.driver._swim.counters, two.driver._swim.counters
        await until(lambda: min(one.stream_saved for one in saved) >= 3)
        assert told(one, "n3") == told(two, "n3") == [ALIVE]
        assert one.state("n3") == ALIVE


async def test_a_restarted_node_is_another_incarnation_and_old_datagrams_of_it_are_refused() -> None:
    async with cluster(secrets=(SECRET,)) as (one, two, three):
        recorded = [datagram for _, datagram in three.endpoint.sent[-20:]]
        await three.stop()
        again = Node("n3", port=three.port, seeds=[one.address], secrets=(SECRET,), boots=2)
        await start_all(again)
        await until(lambda: again.state("n2") == ALIVE)
        await until(lambda: all(node.driver.member(again.id).incarnation >= 2_000_000 for node in (one, two)))  # type: ignore[union-attr]
        before = one.driver.refused().get("replayed", 0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as replayer:
            for datagram in recorded:
                replayer.sendto(datagram, ("127.0.0.1", one.port))
            await until(lambda: one.driver.refused().get("replayed", 0) == before + len(recorded))
        assert one.state("n3") == ALIVE
        await again.stop()


async def test_a_restarted_receiver_refuses_what_others_have_seen() -> None:
    """The numbers come with the tale of the first push-pull, before which nothing recorded is worth anything."""
    async with cluster(secrets=(SECRET,)) as (one, two, three):
        recorded = [datagram for _, datagram in two.endpoint.sent]
        await three.stop()
        again = Node("n3", port=three.port, seeds=[one.address], secrets=(SECRET,), boots=2)
        await again.start()
        await until(lambda: again.state("n2") == ALIVE)
        seen = dict((node.hex(), (boots, counter)) for node, boots, counter in one.driver._seal.seen())
        assert dict((node.hex(), (boots, counter)) for node, boots, counter in again.driver._seal.seen())[two.id] >= (
            1,
            1,
        )
        await until(lambda: two.id in seen)
        counter = seen[two.id][1]
        old = [datagram for number, datagram in enumerate(recorded, 1) if number <= min(counter, 20)]
        before = again.driver.refused().get("replayed", 0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as replayer:
            for datagram in old:
                replayer.sendto(datagram, ("127.0.0.1", again.port))
            await until(lambda: again.driver.refused().get("replayed", 0) >= before + len(old))
        await again.stop()


async def test_a_rotation_of_the_secret_suspects_nobody() -> None:
    async with cluster(secrets=(SECRET,)) as nodes:
        for step in ((SECRET, OTHER), (OTHER, SECRET), (OTHER,)):
            for node in nodes:
                node.driver.set_secrets(step)
                await asyncio.sleep(2 * FAST.probe_seconds)  # several probes with nodes at different steps
        for node in nodes:
            assert all(told(node, other.driver._swim.me.name) == [ALIVE] for other in nodes if other is not node)
            assert node.driver.refused() == {}
        newcomer = Node("n4", secrets=(OTHER,), seeds=[nodes[0].address])
        await start_all(newcomer)
        await until(lambda: set(newcomer.states()) == {"n1", "n2", "n3", "n4"})
        await newcomer.stop()


async def test_the_forgotten_make_room_for_others() -> None:
    settings = with_settings(forget_seconds=0.5, sweep_seconds=0.1)
    async with cluster(secrets=(SECRET,), settings=settings) as (one, _two, three):
        await until(lambda: bytes.fromhex(three.id) in one.driver._seal._windows)
        await three.stop(leave=True)
        await until(lambda: one.driver.member(three.id) is None)
        assert bytes.fromhex(three.id) not in one.driver._seal._windows


async def test_two_clusters_and_other_secrets_keep_apart_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    one = Node("n1", secrets=(SECRET,))
    foreign = Node("n2", secrets=(SECRET,), cluster="d" * 32, seeds=[one.address])
    wrong = Node("n3", secrets=(OTHER,), seeds=[one.address])
    namesake = Node("n1", node=IDS["n4"], secrets=(SECRET,), seeds=[one.address])
    nodes = (one, foreign, wrong, namesake)
    for node in nodes:
        await node.start()
    for fault in ("CLUSTER_MISMATCH", "SECRET_MISMATCH", "DUPLICATE_NAME"):
        await until(lambda fault=fault: "refused this node" in caplog.text and caplog.text.count(fault) >= 2)  # type: ignore[misc]
    for node in nodes:
        assert list(node.states()) == [node.driver._swim.me.name]
    lines = [record.getMessage() for record in caplog.records if "DUPLICATE_NAME" in record.getMessage()]
    assert any("refused this node" in line for line in lines)
    assert any("this node (n1 at " in line and "refused a connection" in line for line in lines)
    for line in lines:
        assert one.address in line
        assert namesake.address in line
        assert "another --name" in line
    await stop_all(*nodes)


async def test_two_nodes_of_one_name_that_others_know_are_told_of_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Neither speaks to the other; a third one knows both."""
    third = Node("n3")
    one = Node("n1", seeds=[third.address])
    namesake = Node("n1", node=IDS["n4"], seeds=[third.address])
    for node in (third, one, namesake):
        await node.start()
    await until(lambda: "two nodes are called n1" in caplog.text)
    line = next(record.getMessage() for record in caplog.records if "two nodes are called" in record.getMessage())
    assert one.address in line
    assert namesake.address in line
    await stop_all(third, one, namesake)


async def test_ipv6_and_names_are_resolved() -> None:
    try:
        one = Node("n1", host="::1")
    except OSError:
        pytest.skip("no IPv6 here")
    two = Node("n2", host="::1", seeds=[one.address])
    await start_all(one, two)
    rtts = [view.rtt for view in one.driver.members() if view.member.name == "n2"]
    await until(lambda: any(view.rtt is not None for view in one.driver.members()))
    assert rtts
    await stop_all(one, two)


async def test_cargo_travels_by_datagrams_and_by_push_pull() -> None:
    async with cluster() as nodes:
        nodes[0].parcels.add("told")
        nodes[0].driver.wake()
        # Without its own retransmissions, what gets lost comes with the comparisons.
        nodes[1].parcels.held.add("compared")
        await until(lambda: all(node.parcels.held == {"told", "compared"} for node in nodes))


async def test_the_cluster_heals_when_each_was_alone() -> None:
    """Nobody can reach anybody until all are dead to each other; then seeds and the dead are asked again."""
    async with cluster() as nodes:
        for node in nodes:
            node.endpoint.cut = True
            node.driver._push_pull._open = False
        await until(lambda: all(list(node.states().values()).count(DEAD) == 2 for node in nodes))
        for node in nodes:
            node.endpoint.cut = False
            node.driver._push_pull._open = True
        await until(lambda: all(set(node.states().values()) == {ALIVE} for node in nodes))


async def test_who_is_removed_for_good_has_left_and_stays_so() -> None:
    async with cluster() as (one, two, three):
        await three.stop()
        await until(lambda: two.state("n3") in (SUSPECT, DEAD))
        one.driver.declare_left(three.id)
        await until(lambda: one.state("n3") == two.state("n3") == LEFT)
        await asyncio.sleep(3 * FAST.push_pull_seconds)  # nobody is told otherwise
        assert one.state("n3") == two.state("n3") == LEFT


async def test_a_large_cluster_hears_of_a_newcomer_by_one_address() -> None:
    """Twelve nodes, each of which was told of one other only."""
    first = Node("n1", node=f"{1:032x}")
    nodes = [first]
    for number in range(2, 13):
        nodes.append(Node(f"n{number}", node=f"{number:032x}", seeds=[nodes[-1].address]))
    await start_all(*nodes)
    await stop_all(*nodes)


async def test_a_record_that_is_too_large_to_be_told_is_refused() -> None:
    with pytest.raises(Invalid):
        Node("n1", labels={f"label{number}": "x" * 60 for number in range(16)})


# -- hostile datagrams


def garbage(rng: random.Random) -> Iterator[bytes]:
    while True:
        yield rng.randbytes(rng.choice((0, 1, 37, 38, 70, 600, DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_MAX + 1)))


def truncated(rng: random.Random, real: list[bytes]) -> Iterator[bytes]:
    while True:
        datagram = rng.choice(real)
        yield datagram[: rng.randrange(len(datagram))]


def forged(rng: random.Random, real: list[bytes]) -> Iterator[bytes]:
    """As from a member, with a high number and a signature that nobody made: what costs most to refuse."""
    sender = Seal(cluster=CLUSTER, node=IDS["n2"], boots=1_000, secrets=(b"guess",))
    while True:
        yield sender.wrap(rng.choice(real)[38:-32])


def replayed(rng: random.Random, real: list[bytes]) -> Iterator[bytes]:
    while True:
        yield rng.choice(real)


KINDS: dict[str, Callable[[random.Random, list[bytes]], Iterator[bytes]]] = {
    "garbage": lambda rng, real: garbage(rng),
    "truncated": truncated,
    "forged": forged,
    "replayed": replayed,
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_flood_changes_nothing_and_costs_little(kind: str) -> None:
    """4,000 packets in about half a second beside the members' own. What one costs is measured without the kernel's
    part: see docs/gossip.md."""
    async with cluster(secrets=(SECRET,)) as (one, two, three):
        await asyncio.sleep(3 * FAST.probe_seconds)  # something to record
        real = [datagram for address, datagram in two.endpoint.sent if address == one.address]
        believed = [node.driver._swim.me for node in (one, two, three)]
        flood = KINDS[kind](random.Random(1), real)
        before = sum(one.driver.refused().values())
        sent = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
            attacker.setblocking(False)
            while sent < 4_000:
                for _ in range(100):
                    attacker.sendto(next(flood), ("127.0.0.1", one.port))
                sent += 100
                await asyncio.sleep(0.01)
        await until(lambda: sum(one.driver.refused().values()) - before >= sent * 0.9)
        assert set(one.driver.refused()) <= {"size", "version", "cluster", "forged", "replayed"}
        assert len(one.driver._seal.seen()) == 3
        assert [node.driver._swim.me for node in (one, two, three)] == believed
        for node in (one, two, three):
            assert set(node.states().values()) == {ALIVE}
            assert DEAD not in [state for other in ("n1", "n2", "n3") for state in told(node, other)]
        microseconds = cost_of_refusal(one, [next(flood) for _ in range(2_000)])
        print(f"{kind}: {microseconds:.1f} us for each refused packet")
        assert microseconds < 100


def cost_of_refusal(node: Node, datagrams: list[bytes]) -> float:
    """Of this process's time: the machine may have other things to do."""
    began = time.process_time()
    for datagram in datagrams:
        node.driver._on_datagram(datagram, ("127.0.0.1", 9))
    return (time.process_time() - began) / len(datagrams) * 1e6


async def test_what_is_too_long_is_refused_and_not_cut() -> None:
    async with cluster(1) as (one,):
        datagram = Seal(cluster=CLUSTER, node=IDS["n9"], boots=1).wrap(bytes(1_000)).ljust(DATAGRAM_BYTES_MAX, b"\0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(datagram, ("127.0.0.1", one.port))
            sender.sendto(datagram + b"\0", ("127.0.0.1", one.port))
        await until(lambda: sum(one.driver.refused().values()) == 2)
        assert one.driver.refused() == {"malformed": 1, "size": 1}


async def test_refusals_are_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async with cluster(1, secrets=(SECRET,)) as (one,):
        foreign = Seal(cluster="d" * 32, node=IDS["n9"], boots=1, secrets=(SECRET,))
        for _ in range(100):
            one.driver._on_datagram(foreign.wrap(b"x"), ("10.0.0.9", 7001))
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert lines == [
            "a datagram from 10.0.0.9:7001 is refused: it is of another cluster; check --join and --initial-cluster of "
            "the node there"
        ]
        assert one.driver.refused() == {"cluster": 100}


async def test_numbers_are_shown_as_metrics() -> None:
    async with cluster(2) as (one, _two):
        metrics = Metrics(node="n1", process=False)
        one.driver.add_gauges(metrics)
        one.driver._on_datagram(b"nonsense", ("127.0.0.1", 9))
        assert metrics.gauge("kvstore_gossip_members") == {"alive": 2, "suspect": 0, "dead": 0, "left": 0}
        assert metrics.gauge("kvstore_gossip_refused") == {"size": 1}
        await until(lambda: metrics.gauge("kvstore_gossip_packets")["sent"] > 0)
        await until(lambda: metrics.gauge("kvstore_gossip_bytes")["received"] > 0)
        assert metrics.gauge("kvstore_gossip_events")["push_pulls"] >= 0
        assert metrics.gauge("kvstore_gossip_health") == {"score": 0}
        assert metrics.gauge("kvstore_gossip_send_errors") == {}


async def test_a_handler_that_fails_is_told_of_and_stops_nothing() -> None:
    loop = asyncio.get_running_loop()
    complaints: list[str] = []
    loop.set_exception_handler(lambda _, context: complaints.append(str(context["exception"])))
    one = Node("n1")
    one.events = None  # type: ignore[assignment]
    two = Node("n2", seeds=[one.address])
    await start_all(one, two)
    assert complaints == ["'NoneType' object has no attribute 'append'"]
    await two.stop(leave=True)
    await until(lambda: one.state("n2") == LEFT)
    await one.stop()


# -- the endpoint


async def test_a_taken_udp_port_is_refused_with_its_reason() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(StartRefused, match=f"can't use UDP port {address}: Address already in use; gossip needs"):
            bind_datagrams(address)


async def test_send_errors_are_counted_and_never_raised() -> None:
    _, bound = bind_both("127.0.0.1")
    _.close()
    endpoint = UdpEndpoint(bound)
    endpoint.send("255.255.255.255:9", b"x")  # without SO_BROADCAST: EACCES
    endpoint.send("127.0.0.1:9", b"x" * 70_000)
    endpoint.send("[::1]:9", b"x")  # cannot be said to an IPv4 socket, nor looked up for one
    endpoint.send("no port", b"x")
    await until(lambda: endpoint.errors.get("unresolved", 0) == 2)
    assert endpoint.errors == {"eacces": 1, "emsgsize": 1, "unresolved": 2}
    await endpoint.close()


async def test_names_are_looked_up_once_and_what_waits_is_sent_then(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    lookups: list[str] = []
    gate = asyncio.Event()
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        lookups.append(host)
        await gate.wait()
        if host == "nowhere":
            raise socket.gaierror("unknown")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", port))]

    tcp, bound = bind_both("127.0.0.1")
    tcp.close()
    endpoint = UdpEndpoint(bound)
    monkeypatch.setattr(endpoint._resolver, "_loop", FakeLoop(loop, getaddrinfo))
    endpoint.open(lambda datagram, _: heard.put_nowait(datagram), lambda: None)
    port = bound.getsockname()[1]
    for number in range(WAITING_MAX + 3):
        endpoint.send(f"somewhere:{port}", b"%d" % number)
        endpoint.send(f"nowhere:{port}", b"lost")
    await asyncio.sleep(0)
    assert sorted(lookups) == ["nowhere", "somewhere"]
    gate.set()
    assert [await heard.get() for _ in range(WAITING_MAX)] == [b"%d" % number for number in range(WAITING_MAX)]
    endpoint.send(f"somewhere:{port}", b"later")
    assert await heard.get() == b"later"
    assert len(lookups) == 2
    assert endpoint.errors == {"unresolved": WAITING_MAX}
    monkeypatch.setattr("kvstore.gossip.resolver.NAME_SECONDS", 0.0)
    endpoint._resolver._remember(f"somewhere:{port}", ("127.0.0.1", port), loop.time() - 1)
    endpoint.send(f"somewhere:{port}", b"by the old answer")  # while the name is looked up again
    assert await heard.get() == b"by the old answer"
    assert len(lookups) == 3
    for number in range(NAMES_MAX + 10):
        endpoint.send(f"127.0.0.1:{number % 60_000 + 1}", b"")
        endpoint._resolver.get(f"10.{number >> 8}.{number & 255}.1:7001")
    assert len(endpoint._resolver._known) <= NAMES_MAX
    await endpoint.close()


class FakeLoop:
    """The running loop with another resolver."""

    def __init__(self, loop: asyncio.AbstractEventLoop, getaddrinfo: object) -> None:
        self._real = loop
        self.getaddrinfo = getaddrinfo

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (("10.0.0.1", 7001), "10.0.0.1:7001"),
        (("::1", 7001, 0, 0), "[::1]:7001"),
        (("::ffff:10.0.0.1", 7001, 0, 0), "10.0.0.1:7001"),
        (("fe80::1", 7001, 0, 3), "[fe80::1%3]:7001"),
    ],
)
async def test_addresses_as_texts(target: tuple[str, int], text: str) -> None:
    assert text_of(target) == text
