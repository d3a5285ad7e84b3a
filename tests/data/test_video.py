"""Frames of videos, on small real mp4 files of each awkward kind."""

import numpy as np
import pytest

from hmtl_jax.data import video
from tests import tiny
from tests.data.films import SHAPE, film, number_of, turn


def taken(path, count):
    found = video.frames(path, count)
    assert [number_of(image) for _, image in found] == [number for number, _ in found]
    return [number for number, _ in found]


@pytest.mark.parametrize("b_frames", [0, 3])
def test_frames_are_spaced_evenly_and_the_same_each_time(tmp_path, b_frames):
    path = film(tmp_path / "a.mp4", 30, b_frames=b_frames)
    assert taken(path, 5) == [3, 9, 15, 21, 27]
    assert taken(path, 1) == [15] and taken(path, 30) == list(range(30))
    assert taken(path, 100) == list(range(30))  # each once


def test_a_changing_frame_rate_counts_frames_and_not_time(tmp_path):
    times = [*range(10), *range(100, 400, 15)]
    path = film(tmp_path / "a.mp4", 30, times=times)
    assert taken(path, 5) == [3, 9, 15, 21, 27]


def test_a_turned_film_is_upright(tmp_path):
    """Its white quarter is on the left as it is stored, and on top as it is shown."""
    lying = video.frames(film(tmp_path / "a.mp4", 4), 1)[0][1]
    assert lying.shape == (*SHAPE, 3) and lying[:, :8].mean() > 240
    upright = video.frames(turn(film(tmp_path / "b.mp4", 4)), 1)[0][1]
    assert upright.shape == (*SHAPE[::-1], 3) and upright[:8].mean() > 240


def test_films_with_something_wrong(tmp_path):
    film(tmp_path / "sound.mp4", sound=True, pictures=False)
    assert "has no pictures, only sound" in tiny.refused(video.frames, tmp_path / "sound.mp4", 3)
    whole = film(tmp_path / "whole.mp4", sound=True)
    assert taken(whole, 3) == [5, 15, 25]
    cut = tmp_path / "cut.mp4"
    # The index of a plain mp4 stands at its end: without it nothing can be opened.
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert "cut.mp4 is damaged, cut short or no video" in tiny.refused(video.frames, cut, 3)
    cut.write_bytes(b"no video at all")
    assert "is damaged, cut short or no video" in tiny.refused(video.frames, cut, 3)
    assert "is damaged, cut short or no video" in tiny.refused(
        video.frames, tmp_path / "missing.mp4", 3
    )


def test_frames_that_do_not_decode_are_a_fault(tmp_path):
    """Zeros in the middle of the pictures, whose index is whole."""
    path = film(tmp_path / "a.mp4", 30)
    whole = bytearray(path.read_bytes())
    at = whole.index(b"mdat") + 4
    middle = at + (len(whole) - at) // 4
    whole[middle : middle + 600] = bytes(600)
    path.write_bytes(whole)
    try:
        found = video.frames(path, 30)
    except Exception as error:
        assert "damaged" in str(error) or "cut short" in str(error)
    else:  # a decoder may hide what it lacks; then the numbers of frames stay what they were
        assert np.all(np.diff([number for number, _ in found]) > 0)
