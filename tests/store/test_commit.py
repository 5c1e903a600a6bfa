"""Writers of one chunk under every interleaving and every kill we can draw: a receipt never lies about the stored bytes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spared_fm.store import claims
from spared_fm.store.commit import checksum, chunk_key, commit, receipt_key, withdraw

NODE, K = "array", 3
CHUNK, RECEIPT = chunk_key(NODE, K), receipt_key(NODE, K)


class Killed(BaseException):
    """The writer's process is gone."""


class Memory:
    """The primitives over a dict; ``before`` is called in front of each, with its name."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.before: Callable[[], None] = lambda: None

    def read(self, key: str) -> bytes:
        self.before()
        try:
            return self.content[key]
        except KeyError:
            raise FileNotFoundError(key) from None

    def exists(self, key: str) -> bool:
        self.before()
        return key in self.content

    def list(self, key: str) -> list[str]:
        self.before()
        return sorted({name[len(key) + 1 :].split("/")[0] for name in self.content if name.startswith(f"{key}/")})

    def replace(self, key: str, data: bytes) -> None:
        self.before()
        self.content[key] = data

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.before()
        if key in self.content:
            return False
        self.content[key] = data
        return True

    def remove(self, key: str) -> None:
        self.before()
        self.content.pop(key, None)


def receipt_of(data: bytes, device: str) -> dict[str, object]:
    return {"chunk": K, "crc32c": checksum(data), "bytes": len(data), "device": device}


def agrees(files: Memory) -> bool:
    """Whether there is no receipt, or it is that of the stored bytes."""
    words = files.content.get(RECEIPT)
    return words is None or json.loads(words)["crc32c"] == checksum(files.content[CHUNK])


class Scheduler:
    """Runs writers one primitive at a time, in a drawn order; kills them where told."""

    def __init__(self, files: Memory, tasks: list[Callable[[], object]]) -> None:
        self.files = files
        self.alive = set(range(len(tasks)))
        self.killed: set[int] = set()
        self.failed: list[BaseException] = []
        self._turn = threading.Condition()
        self._now: int | None = None
        self._mine = threading.local()
        files.before = self._wait
        self.threads = [threading.Thread(target=self._run, args=(i, task), daemon=True) for i, task in enumerate(tasks)]

    def _wait(self) -> None:
        """Give the turn back and wait for the next one."""
        i = getattr(self._mine, "i", None)
        if i is None:
            return
        with self._turn:
            self._now = None
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._now == i)
        if i in self.killed:
            raise Killed

    def _run(self, i: int, task: Callable[[], object]) -> None:
        self._mine.i = i
        with self._turn:
            self._turn.wait_for(lambda: self._now == i)
        try:
            task()
        except Killed:
            pass
        except BaseException as error:
            self.failed.append(error)
        with self._turn:
            self.alive.discard(i)
            self._now = None
            self._turn.notify_all()

    def step(self, i: int) -> None:
        with self._turn:
            self._now = i
            self._turn.notify_all()
            assert self._turn.wait_for(lambda: self._now is None, timeout=30)


def interleave(files: Memory, writers: list[tuple[bytes, str]], order: list[int], kills: dict[int, int]) -> None:
    """Run writers; ``order`` names whose turn it is (then round robin), ``kills`` the step at which a writer dies."""

    def task(data: bytes, device: str) -> Callable[[], object]:
        return lambda: commit(files, NODE, K, data, receipt_of(data, device))

    scheduler = Scheduler(files, [task(*writer) for writer in writers])
    owners: dict[str, int] = {}

    def is_over(claim: dict | None) -> bool:
        return claim is None or owners.get(claim["owner"]) in scheduler.killed

    class Claim(claims.Claim):
        """Knows its writer from before it is put: a writer may die between putting its claim and being told it holds it."""

        def words(self) -> bytes:
            owners[self._owner] = scheduler._mine.i
            return super().words()

    trusted = CHUNK not in files.content  # then what is receipted once stays
    first: bytes | None = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spared_fm.store.claims.is_over", is_over)
        patch.setattr("spared_fm.store.claims.Claim", Claim)
        patch.setattr("spared_fm.store.commit.POLL_S", 0)
        for thread in scheduler.threads:
            thread.start()
        steps = 0
        turns = iter(order)
        while scheduler.alive:
            i = next(turns, None)
            i = sorted(scheduler.alive)[(steps if i is None else i) % len(scheduler.alive)]
            if kills.get(i) == steps:
                scheduler.killed.add(i)
            scheduler.step(i)
            assert agrees(files), f"after step {steps} of writer {i}"
            first = first or files.content.get(RECEIPT)
            assert not trusted or files.content.get(RECEIPT) == first, "a receipt was replaced without need"
            steps += 1
            assert steps < 3000, "no end"
        for thread in scheduler.threads:
            thread.join()
    files.before = lambda: None
    assert not scheduler.failed, scheduler.failed


BYTES = [b"A" * 8, b"B" * 8, b"C" * 8]
WRITERS = st.lists(st.sampled_from([(data, f"device {i}") for i, data in enumerate(BYTES)]), min_size=1, max_size=3)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    writers=WRITERS,
    before=st.sampled_from([None, b"garbage!", BYTES[0]]),
    order=st.lists(st.integers(0, 2), max_size=60),
    kills=st.dictionaries(st.integers(0, 2), st.integers(0, 40), max_size=2),
)
@example(writers=[(BYTES[0], "a"), (BYTES[1], "b")], before=None, order=[0] * 3 + [1] * 20, kills={0: 3})
@example(writers=[(BYTES[0], "a"), (BYTES[0], "a")], before=b"garbage!", order=[0] * 4, kills={0: 10})
def test_a_receipt_never_lies(
    writers: list[tuple[bytes, str]], before: bytes | None, order: list[int], kills: dict[int, int]
):
    files = Memory()
    if before is not None:
        files.content[CHUNK] = before
    interleave(files, writers, order, kills)
    last = BYTES[1]  # whoever comes later finishes what the dead left
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spared_fm.store.claims.is_over", lambda claim: True)
        if RECEIPT not in files.content:
            commit(files, NODE, K, last, receipt_of(last, "last"))
    assert agrees(files)
    assert RECEIPT in files.content
    words = json.loads(files.content[RECEIPT])
    assert (files.content[CHUNK], words["device"]) in [
        *writers,
        (last, "last"),
        *((d, w[1]) for d in BYTES for w in writers),
    ]
    assert words["crc32c"] == checksum(files.content[CHUNK])
    if not kills:
        assert not files.list("array/claims"), "nothing is left over"


@pytest.mark.parametrize("lead", range(1, 7))
def test_every_way_to_cut_in_once_and_return(lead: int):
    for steps in range(1, 24):
        for back in (1, 2, 20):
            interleave(Memory(), [(BYTES[0], "a"), (BYTES[1], "b")], [0] * lead + [1] * steps + [0] * back, {})


def test_the_first_writer_wins_and_the_second_takes_its_bytes():
    files = Memory()
    assert commit(files, NODE, K, b"one", receipt_of(b"one", "cpu"))
    assert not commit(files, NODE, K, b"two", receipt_of(b"two", "gpu"))
    assert files.content[CHUNK] == b"one"
    assert json.loads(files.content[RECEIPT])["device"] == "cpu"


def test_another_devices_orphan_with_an_intent_is_finished_not_overwritten():
    files = Memory()
    words = json.dumps(receipt_of(b"one", "dead gpu")).encode()
    files.content |= {CHUNK: b"one", f"{NODE}/claims/{K}.{checksum(b'one')}.intent": words}
    assert not commit(files, NODE, K, b"two", receipt_of(b"two", "cpu"))
    assert (files.content[CHUNK], files.content[RECEIPT]) == (b"one", words)


@pytest.mark.parametrize("receipt", [b"{", b"[]", json.dumps(receipt_of(b"other", "x")).encode()])
def test_a_receipt_that_lies_is_withdrawn(receipt: bytes):
    files = Memory()
    files.content |= {CHUNK: b"damaged", RECEIPT: receipt}
    assert commit(files, NODE, K, b"good", receipt_of(b"good", "cpu"))
    assert files.content[CHUNK] == b"good"
    assert agrees(files)
    [kept] = [name for name in files.list(f"{NODE}/claims") if name.endswith(".withdrawn")]
    assert files.content[f"{NODE}/claims/{kept}"] == receipt


def test_a_damaged_chunk_under_its_own_receipt_is_rewritten():
    files = Memory()
    commit(files, NODE, K, b"good", receipt_of(b"good", "cpu"))
    files.content[CHUNK] = b"goof"
    assert commit(files, NODE, K, b"good", receipt_of(b"good", "cpu"))
    assert files.content[CHUNK] == b"good"


def test_withdrawing_what_is_not_there():
    files = Memory()
    withdraw(files, NODE, K)
    assert files.content == {}
