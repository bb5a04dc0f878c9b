"""Goal: stamps follow the wall clock within half and twice of real time, whatever the wall clock does, and do not stay
behind after an outage. Method: tables of (what happened, real time passed, wall clock) and a random drive.

Times are ms; the wall clock is told relative to WALL, real time (CLOCK_BOOTTIME) relative to BOOT.
"""

from __future__ import annotations

import random

import pytest

from kvstore.state.stamp import JUMP_MS, StampClock

WALL = 1_700_000_000_000
BOOT = 5_000_000
HOUR = 3_600_000


def led(stamp: int = WALL, boot: int = BOOT) -> StampClock:
    """A leader's clock, whose last stamp is `stamp`, given at `boot` and applied 3 ms later."""
    clock = StampClock(0, boot - 1)
    assert clock.next(stamp, boot) == stamp
    clock.on_applied(stamp, boot + 3)
    return clock


@pytest.mark.parametrize(
    ("name", "passed", "wall", "expected"),
    [
        ("as the clock runs", 1_000, 1_000, 1_000),
        ("the same millisecond", 0, 0, 0),
        ("a little fast", 1_000, 1_900, 1_900),
        ("a little slow", 1_000, 600, 600),
        ("stands still", 1_000, 0, 500),
        ("jumps forward an hour", 1_000, HOUR, 2_000),
        ("jumps back an hour", 1_000, -HOUR, 500),
        ("jumps back and no time has passed", 0, -HOUR, 0),
        ("after a suspended night, counted by real time", 8 * HOUR, 8 * HOUR, 8 * HOUR),
        ("after a suspended night, with a wrong wall clock", 8 * HOUR, 0, 4 * HOUR),
        ("after a suspended night, with a clock far ahead", 8 * HOUR, 99 * HOUR, 16 * HOUR),
    ],
)
def test_the_next_stamp_of_a_leader(name: str, passed: int, wall: int, expected: int) -> None:
    clock = led()
    assert clock.peek(WALL + wall, BOOT + passed) - WALL == expected
    assert clock.next(WALL + wall, BOOT + passed) - WALL == expected


def test_one_caller_at_a_time_does_not_slow_time_down() -> None:
    """Each stamp is given right after the last was applied. What counts is when it was made, not when applied: or
    else the time until it was applied would be lost each time, and stamps fall behind for good."""
    clock = led()
    for step in range(1, 1_000):
        boot = BOOT + 5 * step
        stamp = clock.next(WALL + 5 * step, boot)
        assert stamp == WALL + 5 * step
        clock.on_applied(stamp, boot + 5)


@pytest.mark.parametrize("wall_jump", [HOUR, -HOUR])
@pytest.mark.parametrize("step", [1, 2, 7, 333])
@pytest.mark.parametrize("apply_lag", [0, 3, 40])
def test_a_jump_is_caught_up_with_at_the_allowed_rate(wall_jump: int, step: int, apply_lag: int) -> None:
    """At any density of stamps: rounding must neither stop time nor hold it at full speed."""
    clock = led()
    given: list[tuple[int, int]] = []
    boot = BOOT + 10
    while boot < BOOT + 20_000:
        boot += step
        while given and given[0][1] <= boot - apply_lag:
            clock.on_applied(given.pop(0)[0], boot)
        given.append((clock.next(WALL + (boot - BOOT) + wall_jump, boot), boot))
    passed = boot - BOOT
    expected = 2 * passed if wall_jump > 0 else passed // 2
    assert abs(clock.last - WALL - expected) <= 2
    assert clock.jumps == 1


def test_after_a_jump_back_the_wall_clock_is_met_again() -> None:
    clock = led()
    for step in range(1, 400):
        boot = BOOT + 100 * step
        stamp = clock.next(WALL + 100 * step - 10_000, boot)
        clock.on_applied(stamp, boot + 3)
    assert stamp == WALL + 100 * 399 - 10_000
    assert clock.jumps == 1


def test_jumps_are_counted_once_each() -> None:
    clock = led()
    for step in range(1, 50):
        clock.next(WALL + step * 10, BOOT + step * 10)
    assert clock.jumps == 0
    for step in range(50, 100):
        clock.next(WALL + step * 10 - 10 * JUMP_MS, BOOT + step * 10)
    assert clock.jumps == 1
    boot = BOOT + 60_000
    assert clock.next(WALL + 60_000, boot) == WALL + 60_000
    clock.next(WALL + HOUR, boot + 10)
    assert clock.jumps == 2


def follow(clock: StampClock, *, seconds: int, skew: int = 0, start: int = 0) -> int:
    """Apply another leader's stamps live, one a second; the real time after it, relative to BOOT."""
    for second in range(seconds + 1):
        clock.on_applied(WALL + skew + start + second * 1_000, BOOT + start + second * 1_000 + 7)
    return start + seconds * 1_000 + 7


def test_a_new_leader_with_another_wall_clock_does_not_make_time_jump() -> None:
    for skew in (HOUR, -HOUR):
        clock = StampClock(WALL - 50_000, BOOT - 10)
        now = follow(clock, seconds=10)
        stamp = clock.next(WALL + now + skew, BOOT + now + 1_000)
        assert stamp - WALL == (12_000 if skew > 0 else 10_500), "the last one, 10,000, was applied a second ago"
        assert clock.jumps == 1


def test_a_quiet_group_takes_the_wall_clock_over_all_the_time_that_passed() -> None:
    clock = StampClock(WALL - 50_000, BOOT - 10)
    now = follow(clock, seconds=10)
    assert clock.next(WALL + now + 10 * HOUR, BOOT + now + 10 * HOUR) == WALL + now + 10 * HOUR
    assert clock.jumps == 0


def test_after_an_outage_of_all_the_stamps_are_on_time_at_once() -> None:
    """Restart after ten hours: old entries are applied now, but were not made now."""
    clock = StampClock(WALL - 10 * HOUR, BOOT)
    for number in range(50):
        clock.on_applied(WALL - 10 * HOUR + number * 1_000, BOOT + 20 + number)
    assert clock.next(WALL, BOOT + 500) == WALL
    assert clock.jumps == 0


def test_after_a_partition_the_stamps_are_on_time_at_once() -> None:
    """Cut off for an hour; then five minutes' worth of old entries come, and then this replica leads."""
    clock = StampClock(WALL - 50_000, BOOT - 10)
    now = follow(clock, seconds=10)
    for number in range(300):
        clock.on_applied(WALL + now + number * 1_000, BOOT + now + HOUR + number)
    assert clock.next(WALL + now + HOUR + 400, BOOT + now + HOUR + 400) == WALL + now + HOUR + 400
    assert clock.jumps == 0


def test_no_stamp_is_given_below_one_that_was_applied() -> None:
    """Another leader's clock was ahead; ours goes on from there at half speed."""
    clock = StampClock(0, BOOT)
    clock.on_applied(WALL + HOUR, BOOT + 10)
    assert clock.next(WALL, BOOT + 10) == WALL + HOUR
    assert clock.next(WALL, BOOT + 1_010) == WALL + HOUR + 500


def test_what_was_given_and_never_applied_is_forgotten() -> None:
    """Deposed with a stamp on the way, and leader again after another one led for a while."""
    clock = led()
    clock.next(WALL + 2_000, BOOT + 1_000)  # lost with its entry
    now = follow(clock, seconds=20, start=4_000)
    stamp = clock.next(WALL + HOUR, BOOT + now + 100)
    assert WALL + now + 50 <= stamp <= WALL + now + 220


def test_a_lost_stamp_of_a_wrong_clock_binds_nobody() -> None:
    """Just started, a clock a year ahead, deposed before anything was committed; then another leads, then we again."""
    clock = StampClock(WALL - 50_000, BOOT - 10)
    year = 365 * 24 * HOUR
    assert clock.next(WALL + year, BOOT) == WALL + year
    now = follow(clock, seconds=20)
    stamp = clock.next(WALL + year + now, BOOT + now + 100)
    assert stamp == WALL + 20_000 + 200


def test_our_own_stamps_count_from_when_they_were_made() -> None:
    """Applied a second later; one foreign entry since, which proves nothing yet."""
    clock = StampClock(0, BOOT - 1)
    clock.next(WALL, BOOT)
    clock.on_applied(WALL, BOOT + 1_000)
    clock.on_applied(WALL + 1_200, BOOT + 1_500)
    assert clock.next(WALL + HOUR, BOOT + 3_000) == WALL + 6_000


def test_random_drives_stay_within_the_bounds() -> None:
    """A leader whose wall clock jumps at random: between any two stamps half to twice the real time, +-1 ms."""
    for seed in range(30):
        rng = random.Random(seed)
        clock = led()
        boot, error = BOOT + 3, 0
        history = [(WALL, BOOT)]
        waiting: list[int] = []
        for _ in range(300):
            boot += rng.choice((0, 0, 1, 3, 50, 2_000))
            if rng.random() < 0.05:
                error = rng.randrange(-HOUR, HOUR)
            while waiting and rng.random() < 0.5:
                clock.on_applied(waiting.pop(0), boot)
            stamp = clock.next(WALL + boot - BOOT + error, boot)
            waiting.append(stamp)
            for earlier, at in history[-20:]:
                assert (boot - at) // 2 - 1 <= stamp - earlier <= 2 * (boot - at) + 1
            history.append((stamp, boot))
