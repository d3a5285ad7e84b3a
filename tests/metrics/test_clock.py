"""The clock counts training only, and goes on where a checkpoint left it."""

import json

import pytest

from hmtl_jax import errors
from hmtl_jax.metrics import clock


class Time:
    """Seconds that pass only when told."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def time():
    return Time()


def test_counts_images_and_seconds(time):
    timer = clock.Clock(now=time)
    time.seconds += 10
    timer.count(50)
    assert (timer.images, timer.seconds, timer.images_per_second) == (50, 10.0, 5.0)


def test_evaluation_is_not_counted(time):
    timer = clock.Clock(now=time)
    timer.count(20)
    time.seconds += 2
    timer.pause()
    timer.pause()
    time.seconds += 1000
    assert timer.images_per_second == 10
    timer.resume()
    timer.resume()
    time.seconds += 2
    assert timer.seconds == 4


def test_lap_is_the_rate_since_the_last_lap(time):
    timer = clock.Clock(now=time)
    timer.count(10)
    time.seconds += 10  # compilation
    assert timer.lap() == 1
    timer.count(100)
    time.seconds += 1
    timer.pause()
    time.seconds += 50
    timer.resume()
    assert timer.lap() == 100
    assert timer.images_per_second == 10
    assert timer.eta(6000) == "1 min 00 s"


def test_a_short_lap_tells_nothing_of_when_the_run_ends(time):
    timer = clock.Clock(now=time)
    for images, seconds, rate in ((100, 10, 10), (10, 0.001, 10), (60, 3, 20)):
        timer.count(images)
        time.seconds += seconds
        assert timer.lap() == pytest.approx(rate)
        assert timer.eta(1000) == ("50 s" if images == 60 else "1 min 40 s")


def test_no_time_no_rate(time):
    timer = clock.Clock(now=time)
    timer.count(10)
    assert timer.images_per_second == 0
    assert timer.lap() == 0
    assert timer.eta(100) == "?"


def test_restored_clock_goes_on(time):
    first = clock.Clock(now=time)
    first.count(30)
    time.seconds += 3
    state = json.loads(json.dumps(first.state()))
    assert state == {"images": 30, "seconds": 3.0}
    time.seconds += 500  # the run lies dead
    second = clock.Clock.from_state(state, now=time)
    second.count(10)
    time.seconds += 2
    assert (second.images, second.seconds) == (40, 5.0)
    assert second.lap() == 5, "the first lap holds what this process did, not the run before"


@pytest.mark.parametrize("state", [{}, {"images": 1}, {"images": None, "seconds": 1}, None])
def test_bad_state_is_refused(state):
    with pytest.raises(errors.UserError, match="images and seconds"):
        clock.Clock.from_state(state)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (3720, "1 h 02 min"),
        (7190, "2 h 00 min"),
        (86399, "1 d 00 h"),
        (2 * 86400 + 3 * 3600, "2 d 03 h"),
    ],
)
def test_duration_in_words(seconds, words):
    assert clock.duration(seconds) == words


def test_real_time_passes():
    timer = clock.Clock()
    assert 0 <= timer.seconds < 60
