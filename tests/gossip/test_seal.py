"""Goal: a datagram is let in once, and only if a member of this cluster has sealed it. Method: tables of forgeries; the
window against a set that remembers everything; any bytes at all.
"""

from __future__ import annotations

import itertools
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.gossip.seal import (
    BOOTS_MAX,
    COUNTER_MAX,
    DATAGRAM_BYTES_MAX,
    OVERHEAD_BYTES,
    PAYLOAD_BYTES_MAX,
    WINDOW,
    Refusal,
    Seal,
)

CLUSTER = "c" * 32
ONE, TWO, THREE = "1" * 32, "2" * 32, "3" * 32
SECRET, OTHER = b"s" * 32, b"t" * 32


def seal(node: str = TWO, *, secrets: tuple[bytes, ...] = (SECRET,), boots: int = 1, cluster: str = CLUSTER) -> Seal:
    return Seal(cluster=cluster, node=node, boots=boots, secrets=secrets)


def changed(datagram: bytes, place: int) -> bytes:
    return datagram[:place] + bytes([datagram[place] ^ 1]) + datagram[place + 1 :]


@pytest.mark.parametrize("secrets", [(), (SECRET,), (SECRET, OTHER)])
@pytest.mark.parametrize("size", [1, 100, PAYLOAD_BYTES_MAX])
def test_what_was_sealed_is_opened_and_never_too_long(secrets: tuple[bytes, ...], size: int) -> None:
    payload = random.Random(size).randbytes(size)
    datagram = seal(ONE, secrets=secrets).wrap(payload)
    assert len(datagram) <= DATAGRAM_BYTES_MAX
    assert len(datagram) == size + OVERHEAD_BYTES - (0 if secrets else 32)
    assert seal(secrets=secrets).open(datagram) == payload


@pytest.mark.parametrize("place", range(OVERHEAD_BYTES + 5))
def test_one_wrong_bit_anywhere_is_refused(place: int) -> None:
    receiver, sender = seal(), seal(ONE)
    datagram = sender.wrap(b"hello")
    assert isinstance(receiver.open(changed(datagram, place)), Refusal)
    assert receiver.open(datagram) == b"hello"  # the forgery has used up nothing


@pytest.mark.parametrize(
    ("sender", "receiver", "refusal"),
    [
        (seal(ONE, cluster="d" * 32), seal(), Refusal.CLUSTER),
        (seal(TWO), seal(), Refusal.OWN),
        (seal(ONE, secrets=()), seal(), Refusal.UNSIGNED),
        (seal(ONE), seal(secrets=()), Refusal.SIGNED),
        (seal(ONE, secrets=(OTHER,)), seal(), Refusal.FORGED),
        (seal(ONE, secrets=(OTHER, SECRET)), seal(), Refusal.FORGED),  # the first one signs
    ],
)
def test_who_may_not(sender: Seal, receiver: Seal, refusal: Refusal) -> None:
    assert receiver.open(sender.wrap(b"x")) is refusal


def test_sizes_and_versions() -> None:
    receiver = seal()
    datagram = seal(ONE).wrap(b"x" * PAYLOAD_BYTES_MAX)
    assert receiver.open(datagram + b"x") is Refusal.SIZE
    for size in range(OVERHEAD_BYTES + 1):
        assert isinstance(receiver.open(datagram[:size]), Refusal)
    assert receiver.open(b"\x02" + datagram[1:]) is Refusal.VERSION
    assert receiver.open(datagram[:1] + b"\x02" + datagram[2:]) is Refusal.VERSION


@given(st.binary(max_size=DATAGRAM_BYTES_MAX + 10))
def test_any_bytes_are_refused(data: bytes) -> None:
    assert isinstance(seal().open(data), Refusal)


def test_during_a_rotation_nobody_is_refused() -> None:
    """Old, then (old, new), then (new, old), then new: any two neighbouring steps understand each other."""
    steps = [(SECRET,), (SECRET, OTHER), (OTHER, SECRET), (OTHER,)]
    for one, two in itertools.pairwise(steps):
        for sends, receives in ((one, two), (two, one)):
            assert seal(secrets=receives).open(seal(ONE, secrets=sends).wrap(b"x")) == b"x"
    assert seal(secrets=steps[0]).open(seal(ONE, secrets=steps[2]).wrap(b"x")) is Refusal.FORGED


def test_secrets_may_change_while_it_runs() -> None:
    sender, receiver = seal(ONE), seal()
    receiver.set_secrets((OTHER, SECRET))
    assert receiver.open(sender.wrap(b"1")) == b"1"
    sender.set_secrets((OTHER,))
    receiver.set_secrets((OTHER,))
    assert receiver.open(sender.wrap(b"2")) == b"2"


# -- replays


def test_a_datagram_is_opened_once() -> None:
    sender, receiver = seal(ONE), seal()
    first, second = sender.wrap(b"1"), sender.wrap(b"2")
    assert receiver.open(second) == b"2"
    assert receiver.open(first) == b"1"  # late, but new
    for old in (first, second):
        assert receiver.open(old) is Refusal.REPLAYED


def test_the_window_agrees_with_a_set_that_remembers_everything() -> None:
    rng = random.Random(7)
    sender, receiver = seal(ONE), seal()
    sent: list[bytes] = []
    seen: set[int] = set()
    highest = -1
    for _ in range(4_000):
        burst = rng.choice((0, 1, 1, 1, 3, 40, 700)) if rng.random() < 0.3 else 1
        sent += [sender.wrap(b"x") for _ in range(burst)]
        number = max(0, len(sent) - 1 - int(rng.expovariate(1 / 400)))
        expected = number not in seen and number > highest - WINDOW
        assert (receiver.open(sent[number]) == b"x") is expected, number
        seen.add(number)
        highest = max(highest, number)


def test_a_restarted_sender_counts_anew_and_its_old_datagrams_are_gone() -> None:
    receiver = seal()
    old = seal(ONE, boots=4)
    kept = [old.wrap(b"old") for _ in range(10)]
    assert receiver.open(kept[0]) == b"old"
    assert receiver.open(seal(ONE, boots=5).wrap(b"new")) == b"new"
    assert receiver.open(kept[9]) is Refusal.REPLAYED


def test_a_jump_to_the_highest_number_costs_no_memory() -> None:
    """A shift by what the sender says would be an integer of 2^61 bytes."""
    sender, receiver = seal(ONE), seal()
    assert receiver.open(sender.wrap(b"x")) == b"x"
    sender._counter = COUNTER_MAX - 1
    assert receiver.open(sender.wrap(b"x")) == b"x"
    window = receiver._windows[bytes.fromhex(ONE)]
    assert sys.getsizeof(window.seen) < 200


def test_a_restarted_receiver_learns_by_push_pull_what_is_old() -> None:
    sender, receiver, witness = seal(ONE), seal(), seal(THREE)
    recorded = [sender.wrap(b"x") for _ in range(20)]
    for datagram in recorded[:15]:
        assert receiver.open(datagram) == witness.open(datagram) == b"x"
    restarted = seal(TWO, boots=2)
    assert not restarted.hear(witness.seen())
    for datagram in recorded[:15]:
        assert restarted.open(datagram) is Refusal.REPLAYED
    assert restarted.open(recorded[15]) == b"x"


def test_what_others_saw_counts_beside_what_was_seen_here() -> None:
    sender, receiver, witness = seal(ONE), seal(), seal(THREE)
    recorded = [sender.wrap(b"x") for _ in range(20)]
    assert witness.open(recorded[9]) == b"x"
    assert receiver.open(recorded[12]) == b"x"
    receiver.hear(witness.seen())
    results = [receiver.open(datagram) == b"x" for datagram in recorded]
    assert results == [False] * 10 + [True, True, False] + [True] * 7


def test_numbers_of_a_node_that_was_restored_from_a_copy_go_on() -> None:
    witness = seal(THREE)
    assert witness.open(seal(ONE, boots=7).wrap(b"x")) == b"x"
    restored = seal(ONE, boots=3)
    assert witness.open(restored.wrap(b"x")) is Refusal.REPLAYED
    assert restored.hear(witness.seen())
    assert witness.open(restored.wrap(b"x")) == b"x"
    assert not restored.hear(witness.seen())


def test_nonsense_in_what_others_saw_is_skipped() -> None:
    receiver = seal()
    node = bytes.fromhex(ONE)
    receiver.hear([(b"short", 1, 1), (node, -1, 1), (node, BOOTS_MAX + 1, 1), (node, 1, COUNTER_MAX + 1)])
    assert receiver.open(seal(ONE).wrap(b"x")) == b"x"


def test_senders_are_bounded_and_the_forgotten_make_room() -> None:
    receiver = Seal(cluster=CLUSTER, node=TWO, boots=1, secrets=(SECRET,), senders_max=2)
    for number in range(2):
        assert receiver.open(seal(f"{number:032x}").wrap(b"x")) == b"x"
    assert receiver.open(seal(THREE).wrap(b"x")) is Refusal.STRANGERS
    receiver.hear([(bytes.fromhex(THREE), 1, 1)])
    assert len(receiver.seen()) == 3  # with its own
    receiver.forget(f"{0:032x}")
    assert receiver.open(seal(THREE).wrap(b"x")) == b"x"


def test_without_a_secret_no_numbers_are_kept() -> None:
    """Else anybody could use up a member's numbers in its name."""
    receiver, sender = seal(secrets=()), seal(ONE, secrets=())
    datagram = sender.wrap(b"x")
    assert receiver.open(datagram) == receiver.open(datagram) == b"x"
    receiver.hear([(bytes.fromhex(THREE), 9, 9)])
    assert len(receiver.seen()) == 1
