from __future__ import annotations

import threading
import time

import pytest

from spared_fm.slides.stopwatch import stage, taken


def test_seconds_add_up_and_are_handed_over_once():
    taken()
    for _ in range(2):
        with stage("read"):
            time.sleep(0.01)
    with pytest.raises(KeyError), stage("decode"):
        raise KeyError
    seconds = taken()
    assert seconds["read"] >= 0.02
    assert set(seconds) == {"read", "decode"}
    assert taken() == {}


def test_threads_keep_their_own_tally():
    taken()
    found = {}

    def work() -> None:
        with stage("decode"):
            pass
        found.update(taken())

    thread = threading.Thread(target=work)
    with stage("read"):
        thread.start()
        thread.join()
    assert set(found) == {"decode"}
    assert set(taken()) == {"read"}
