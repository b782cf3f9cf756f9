"""Drivers of one store: who is alive, who holds what, what is waited for, taken over, left."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.errors import StoreError
from raysweep.run.leases import Leases
from raysweep.store import Store, liveness
from raysweep.store.bucket import Bucket
from raysweep.store.heartbeat import (
    BEATS_UNTIL_DEAD,
    Heartbeat,
    heartbeats,
    path_of,
    stop_path_of,
    unpack,
)
from raysweep.store.liveness import Drivers, machine

KEY, OTHER = "train-1", "train-2"


def beat(run: str = "a", **changed: object) -> Heartbeat:
    here = Heartbeat(
        run=run, folder="first", host="elsewhere", pid=1, count=1, state="running", started=1.0
    )
    return replace(here, **changed)  # type: ignore[arg-type]


class Driver(Leases):
    """The leases of a run that beats when it is told to; `asked` counts requests to stop."""

    def __init__(self, store: Store, run: str, host: str = "") -> None:
        self.asked = 0

        def tell(count: int, held: tuple[str, ...]) -> Heartbeat:
            return beat(run, host=host or f"host of {run}", count=count, held=held)

        def stop() -> bool:
            self.asked += 1
            return True

        super().__init__(store, run, tell, stop, beat=0.0)
        self.beat()


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store where a lease is a file, and one that has no way to let exactly one make it."""
    store = Store(str(tmp_path))
    if request.param == "bucket":
        store._opened = Bucket(tmp_path.as_uri())
        assert store.create("leases/probe", b"") is None
    return store


def files(store: Store) -> list[str]:
    return [*store.list("drivers"), *store.list("leases")]


# Who is alive


def test_a_heartbeat_that_stands_still_for_so_many_looks_is_of_a_dead_driver() -> None:
    seen = Drivers()
    for _ in range(BEATS_UNTIL_DEAD):
        seen.look({"a": beat("a").pack(), "damaged": b"no heartbeat"})
        assert set(seen.alive) == {"a", "damaged"} and not seen.known["a"].seen_alive
    seen.look({"a": beat("a", count=2).pack(), "damaged": b"no heartbeat"})
    assert set(seen.alive) == {"a"} and seen.known["a"].seen_alive and seen.dead == ["damaged"]
    seen.look({})
    assert not seen.known


def test_a_process_that_is_gone_is_told_at_once_on_its_own_host_alone() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    here = {"host": socket.gethostname(), "machine": machine()}
    raw = {
        "ended": beat(pid=pid, **here).pack(),  # its parent has not taken notice
        "me": beat(pid=os.getpid(), **here).pack(),
        "another host": beat(pid=pid, machine=machine()).pack(),
        "another kernel": beat(pid=pid, host=here["host"], machine="another").pack(),
    }
    seen = Drivers()
    seen.look(raw)
    assert seen.dead == ["ended"] and seen.known["me"].seen_alive
    assert not seen.known["another host"].seen_alive
    os.waitpid(pid, 0)
    seen = Drivers()
    seen.look(raw)
    assert seen.dead == ["ended"]


def test_a_heartbeat_tells_the_machine_and_older_ones_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert unpack(beat(machine=machine()).pack()) == beat(machine=machine())
    older = beat().pack().replace(b'"machine":"",', b"")
    assert b"machine" not in older and unpack(older) == beat()
    monkeypatch.setattr(liveness, "machine", str)
    seen = Drivers()
    seen.look({"a": beat(host=socket.gethostname(), pid=2**22 + 1).pack()})
    assert set(seen.alive) == {"a"}, "pids mean nothing where the machine is not known"


# Claims


def test_what_one_claims_another_waits_for_until_it_is_stored(store: Store) -> None:
    first, second = Driver(store, "1"), Driver(store, "2")
    assert first.claim([KEY]) == set() == first.claim([KEY]), "a lease stays for another attempt"
    first.beat()
    second.beat()
    assert second.claim([KEY, OTHER]) == {KEY}
    second.beat()
    assert second.news() == []
    store.put(KEY, outcome={"a": 1})
    first.release([KEY, "train-3"])
    first.beat()
    second.beat()
    (news,) = second.news()
    assert set(news.stored) == {KEY} and not news.free and second.news() == []
    assert set(second.stored_meanwhile([KEY, "train-3"])) == {KEY}
    for one in (first, second):
        one.leave()
    assert files(store) == []


def test_what_another_gives_back_without_a_result_is_free(store: Store) -> None:
    first, second = Driver(store, "1"), Driver(store, "2")
    first.claim([KEY])
    first.beat()
    second.beat()
    assert second.claim([KEY]) == {KEY}
    first.close()
    second.beat()
    (news,) = second.news()
    assert not news.stored and set(news.free) == {KEY}
    assert second.claim([KEY]) == set()
    assert heartbeats(store)["1"].state == "ended" and heartbeats(store)["1"].held == ()


def test_only_stages_begun_between_two_beats_are_begun_twice_where_no_file_decides(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path))
    store._opened = Bucket(tmp_path.as_uri())
    first, second = Driver(store, "1"), Driver(store, "2")
    begun: list[str] = []
    for number in range(12):
        key = f"train-{number}"
        for one in (first, second) if number % 2 else (second, first):
            begun += [] if one.claim([key]) else [key]
            for beating in (first, second, first) if number % 3 else ():
                beating.beat()  # both know of both now
    assert sorted(key for key in begun if begun.count(key) > 1) == sorted(
        f"train-{n}" for n in range(0, 12, 3) for _ in range(2)
    )
    assert len(set(begun)) == 12


def test_where_no_file_decides_nobody_is_asked_for_what_is_stored_while_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store._opened = Bucket(tmp_path.as_uri())
    alone = Driver(store, "1")
    with monkeypatch.context() as patch:
        for name in ("read", "write", "list", "delete"):
            patch.setattr(store._opened, name, None)
        assert alone.claim([KEY]) == set() and alone.stored_meanwhile([KEY]) == {}
        alone.release([KEY])
    Driver(store, "2")
    alone.beat()
    store.put(KEY)
    assert set(alone.stored_meanwhile([KEY])) == {KEY}


# Drivers that are gone


def test_what_a_run_holds_to_its_very_end_is_another_drivers_only_then(store: Store) -> None:
    first, second = Driver(store, "1"), Driver(store, "2")
    assert first.hold("publish-s") and first.hold("publish-s")
    for one in (first, second):
        one.beat()
    assert not second.hold("publish-s") and second.hold("publish-other")
    first.close()
    second.beat()
    assert not second.hold("publish-s") and second.news() == [], "it publishes what is left"
    first.leave()
    second.beat()
    assert second.hold("publish-s")
    second.leave()
    assert files(store) == []


def test_what_a_driver_held_that_is_gone_is_taken_over_at_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first, second = Driver(store, "1"), Driver(store, "2")
    assert first.hold("publish-s")
    store.delete(path_of("1"))
    second.beat()
    assert second.hold("publish-s")
    second.leave()


def test_the_leases_of_a_driver_that_stands_still_are_taken_over(store: Store) -> None:
    first, second = Driver(store, "1"), Driver(store, "2")
    first.claim([KEY])
    first.beat()
    second.beat()
    first.beat()
    second.beat()
    (note,) = second.notes()
    assert "sweep first on host of 1 (run 1)" in note and "not computed again" in note
    assert second.claim([KEY]) == {KEY}
    for _ in range(BEATS_UNTIL_DEAD):
        assert second.news() == []
        second.beat()
    (news,) = second.news()
    assert set(news.free) == {KEY} and "is gone" in second.notes()[0]
    assert second.claim([KEY]) == set() and set(heartbeats(store)) == {"2"}
    # The first one was frozen, and wakes up.
    first.release([KEY])
    third = Driver(store, "3")
    second.beat()
    third.beat()
    assert third.claim([KEY]) == {KEY}, "it does not end the lease that is another's by now"
    first.beat()
    for one in (first, second, third):
        one.leave()
    assert files(store) == []


def test_a_relaunch_finds_nothing_of_a_process_that_was_killed_here(store: Store) -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    here = beat("1", host=socket.gethostname(), machine=machine(), pid=pid, held=(KEY,))
    store.write(path_of("1"), here.pack())
    store.write(stop_path_of("1"), b"")
    store.write(stop_path_of("long ago"), b"")
    store.create(f"leases/{KEY}", b"1")
    second = Driver(store, "2")
    assert second.claim([KEY]) == set() and second.notes() == []
    second.leave()
    assert files(store) == []


def test_a_lease_without_a_driver_ends(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    driver = Driver(store, "2")
    store.create(f"leases/{KEY}", b"of nobody")
    store.create(f"leases/{OTHER}", b"2")  # made, though its writer was told that it was not
    assert driver.claim([KEY, OTHER]) == {KEY, OTHER}
    for _ in range(2 * BEATS_UNTIL_DEAD):
        driver.beat()
    assert {key for news in driver.news() for key in news.free} == {KEY, OTHER}
    assert store.list("leases") == []


def test_one_heir_clears_up_and_another_takes_the_place_of_one_that_died(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write(path_of("dead"), beat("dead").pack())
    store.create(f"leases/{KEY}", b"dead")
    heir, other = Driver(store, "heir"), Driver(store, "other")
    store.create("drivers/dead.heir", b"heir")
    for _ in range(BEATS_UNTIL_DEAD):
        heir.beat()
        other.beat()
    assert set(heartbeats(store)) == {"heir", "other"}, "its heir came back to it"
    store.write(path_of("dead"), beat("dead").pack())
    store.create("drivers/dead.heir", b"heir")
    for _ in range(2 * BEATS_UNTIL_DEAD):
        other.beat()
    assert set(heartbeats(store)) == {"other"}
    other.leave()
    assert files(store) == []


# Trouble


def test_a_store_that_fails_ends_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(store, "1")

    def full(*given: object) -> None:
        raise StoreError("no space left")

    with monkeypatch.context() as patch:
        for name in ("write", "create", "list", "delete"):
            patch.setattr(store, name, full)
        assert not driver.beat()
        assert driver.claim([KEY]) == set(), "it goes on as if it were alone"
        driver.release([KEY])
    assert driver.claim([OTHER]) == set()
    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", full)
        driver.release([OTHER])
    assert driver.beat()
    assert store.list("leases") == [], "a lease that could not be removed is removed later"


def test_a_request_to_stop_is_taken_once(store: Store) -> None:
    driver = Driver(store, "1")
    assert driver.asked == 0
    store.write(stop_path_of("1"), b"")
    driver.beat()
    driver.beat()
    assert driver.asked == 1 and store.list("drivers") == [path_of("1")]
