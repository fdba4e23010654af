from __future__ import annotations

import pytest

from core.engine.progress import Meter, bytes_text, duration_text


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_steady_work_gives_its_rate_and_eta(clock: Clock) -> None:
    meter = Meter(clock)
    meter.update(0, 1000)
    for second in range(1, 6):
        clock.now = 100.0 + second
        speed = meter.update(50 * second, 1000)
    assert speed.rate == pytest.approx(50)
    assert speed.eta_seconds == pytest.approx((1000 - 250) / 50)
    assert speed.elapsed == pytest.approx(5)
    assert speed.share == 0.25


def test_no_eta_before_it_means_something(clock: Clock) -> None:
    meter = Meter(clock)
    assert meter.update(0, 1000).eta_seconds is None
    clock.now += 0.5
    assert meter.update(500, 1000).eta_seconds is None  # half of it, but too short a time
    clock.now += 10
    meter = Meter(clock)
    meter.update(0, 10**9)
    clock.now += 5
    assert meter.update(1000, 10**9).eta_seconds is None  # long enough, but next to nothing done
    assert meter.update(10**9, 10**9).eta_seconds == 0.0


def test_a_slow_slice_moves_the_eta_gently(clock: Clock) -> None:
    meter = Meter(clock)
    meter.update(0, 10_000)
    for _ in range(20):
        clock.now += 0.5
        speed = meter.update(meter._last_done + 50, 10_000)
    assert speed.rate == pytest.approx(100)
    clock.now += 1.0
    slow = meter.update(meter._last_done + 10, 10_000)
    assert 70 < slow.rate < 90  # one second at a tenth of the speed


def test_work_done_before_does_not_count_as_speed(clock: Clock) -> None:
    meter = Meter(clock)
    meter.update(900, 1000)
    clock.now += 2
    meter.update(910, 1000)
    clock.now += 2
    speed = meter.update(930, 1000)
    assert speed.rate == pytest.approx(10)
    assert speed.eta_seconds == pytest.approx(7)


def test_the_start_up_does_not_count_as_speed(clock: Clock) -> None:
    """The first step waits for kernels to be compiled; the ETA must not be that of the first step."""
    meter = Meter(clock)
    meter.update(0, 1000)
    clock.now += 10
    assert meter.update(10, 1000).rate is None
    clock.now += 1
    speed = meter.update(110, 1000)
    assert speed.rate == pytest.approx(100)
    assert speed.eta_seconds == pytest.approx(8.9)


def test_pauses_do_not_count(clock: Clock) -> None:
    meter = Meter(clock)
    meter.update(0, 1000)
    clock.now += 2
    meter.update(200, 1000)
    meter.pause()
    clock.now += 3600
    assert meter.elapsed == pytest.approx(2)
    meter.resume()
    clock.now += 2
    speed = meter.update(400, 1000)
    assert speed.rate == pytest.approx(100)
    assert speed.elapsed == pytest.approx(4)


def test_bursts_are_taken_together(clock: Clock) -> None:
    meter = Meter(clock)
    meter.update(0, 10**6)
    for step in range(1, 1001):
        clock.now += 0.01
        speed = meter.update(step * 10, 10**6)
    assert speed.rate == pytest.approx(1000, rel=0.01)


def test_nothing_to_do_is_done(clock: Clock) -> None:
    speed = Meter(clock).update(0, 0)
    assert (speed.share, speed.eta_seconds, speed.rate) == (1.0, 0.0, None)


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (4_300_000, "4.1 MiB"),
        (1024**2 - 1, "1.0 MiB"),
        (13.5 * 1024**3, "13.5 GiB"),
        (5000 * 1024**4, "5000.0 TiB"),
    ],
)
def test_sizes(n: float, text: str) -> None:
    assert bytes_text(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (75, "1 min 15 s"),
        (3599.6, "1 h 00 min"),
        (7260, "2 h 01 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
