"""The contract of a job store, on SQLite and on PostgreSQL."""

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from finecut.launcher.store import testing
from finecut.launcher.store.database import StoreUnavailableError
from finecut.launcher.store.open import open_store
from finecut.launcher.store.records import (
    FolderInUseError,
    JobRecord,
    LeaseLostError,
    NewJob,
    Progress,
    QuotaError,
    RequestReusedError,
)
from finecut.launcher.store.store import JobStore
from finecut.proto import service_pb2
from finecut.proto.config import UserError


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    if (programs := testing.programs()) is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with testing.running_postgresql(programs) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.sqlite"
        return
    server = request.getfixturevalue("postgresql")
    import psycopg

    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    yield server.replace("/postgres?", f"/{name}?")


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    opened = open_store(url)
    yield opened
    opened.close()


def new_job(request: str = "r1", principal: str = "ann", **changes: object) -> NewJob:
    return replace(NewJob(principal, request, b"", "digest", f"/runs/{principal}/{request}", ("a", "b")), **changes)  # type: ignore[arg-type]


def submit(store: JobStore, *requests: str, principal: str = "ann") -> list[JobRecord]:
    return [store.submit(new_job(request, principal), 100) for request in requests]


def claim(store: JobStore, owner: str = "one", seconds: float = 60.0, limit: int = 100) -> JobRecord | None:
    lease = store.claim(owner, seconds, {}, limit)
    return lease.job if lease else None


def claimed(store: JobStore, owner: str = "one", seconds: float = 60.0) -> JobRecord:
    job = claim(store, owner, seconds)
    assert job is not None
    return job


def states(store: JobStore, job: JobRecord) -> list[str]:
    events = store.events(job.id, 0, 100)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return [service_pb2.JobState.Name(event.state) for event in events if event.WhichOneof("event") == "state"]


def in_parallel(count: int, work: Callable[[int], object]) -> list[object]:
    """What `count` threads that start together return or raise."""
    barrier = threading.Barrier(count)

    def call(index: int) -> object:
        barrier.wait()
        try:
            return work(index)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


class TestSubmissions:
    def test_same_request_is_the_same_job(self, store: JobStore) -> None:
        first = store.submit(new_job(config=b"\x0a\x01x"), 1)
        assert store.submit(new_job(config=b"\x0a\x01x"), 1) == first == store.get(first.id)
        assert first.message().config.name == "x" and not first.message(with_config=False).HasField("config")
        assert [stage.name for stage in first.message().stages] == ["a", "b"]

    def test_same_request_with_another_config_is_refused(self, store: JobStore) -> None:
        store.submit(new_job(), 100)
        with pytest.raises(RequestReusedError):
            store.submit(new_job(config_digest="other"), 100)
        assert store.submit(new_job(principal="bob"), 100).principal == "bob", "ids are each principal's own"

    def test_32_at_once_with_one_request_make_one_job(self, store: JobStore) -> None:
        made = in_parallel(32, lambda _: store.submit(new_job(), 100))
        assert len({job.id if isinstance(job, JobRecord) else job for job in made}) == 1
        assert len(store.list_jobs(None, 0, None, 100)) == 1

    def test_quota_holds_under_32_at_once(self, store: JobStore) -> None:
        made = in_parallel(32, lambda index: store.submit(new_job(f"r{index}"), 5))
        assert sum(isinstance(job, JobRecord) for job in made) == 5
        assert sum(isinstance(job, QuotaError) for job in made) == 27

    def test_run_folder_has_one_active_job_under_8_principals_at_once(self, store: JobStore) -> None:
        def work(index: int) -> JobRecord:
            return store.submit(new_job(principal=f"p{index}", run_folder="/runs/x"), 100)

        made = in_parallel(8, work)
        jobs = [job for job in made if isinstance(job, JobRecord)]
        assert len(jobs) == 1 and sum(isinstance(job, FolderInUseError) for job in made) == 7
        store.request_cancel(jobs[0].id)
        assert store.submit(new_job("again", run_folder="/runs/x"), 100).is_active

    def test_what_was_accepted_is_there_after_a_restart(self, url: str) -> None:
        first = open_store(url)
        job = first.submit(new_job(), 100)
        first.close()
        again = open_store(url)
        assert again.get(job.id) == job
        again.close()


class TestQueue:
    def test_principals_take_turns_and_their_jobs_go_in_order(self, store: JobStore) -> None:
        submit(store, "1", "2", "3")
        submit(store, "4", principal="bob")
        assert [claimed(store).request_id for _ in range(4)] == ["1", "4", "2", "3"]
        assert claim(store) is None

    def test_principal_at_its_limit_waits_and_others_do_not(self, store: JobStore) -> None:
        submit(store, "1", "2")
        submit(store, "3", principal="bob")
        turns = [store.claim("one", 60, {"ann": 1}, 9) for _ in range(3)]
        assert [lease and lease.job.request_id for lease in turns] == ["1", "3", None]

    def test_16_at_once_claim_each_job_once(self, store: JobStore) -> None:
        submit(store, *map(str, range(12)))
        got = [job.id for job in in_parallel(16, lambda index: claim(store, f"s{index}")) if isinstance(job, JobRecord)]
        assert len(got) == len(set(got)) == 12

    def test_requeued_job_is_claimed_again_and_counts_attempts_without_progress(self, store: JobStore) -> None:
        submit(store, "1")
        for attempt in (1, 2):
            job = claimed(store)
            assert job.attempts == attempt
            store.requeue(job.id, "one", job.fence, "the launcher crashed")
        job = claimed(store)
        store.record(job.id, "one", job.fence, Progress((), b"", "", has_advanced=True))
        store.requeue(job.id, "one", job.fence, "and again")
        assert claimed(store).attempts == 1


class TestLeases:
    def test_lapsed_lease_is_taken_over_and_the_old_holder_writes_nothing(self, store: JobStore) -> None:
        submit(store, "1")
        old = claimed(store, "one", seconds=0.0)
        new = claimed(store, "two")
        assert new.id == old.id and new.fence > old.fence
        before = (store.get(old.id), store.events(old.id, 0, 100))
        note = Progress((service_pb2.JobEvent(message="stale"),), b"", "x", True)
        for write in (
            lambda: store.record(old.id, "one", old.fence, note),
            lambda: store.requeue(old.id, "one", old.fence, "stale"),
            lambda: store.finish(old.id, "one", old.fence, service_pb2.FAILED, "stale", b""),
        ):
            with pytest.raises(LeaseLostError):
                write()
        assert store.renew("one", 60) == {}
        assert (store.get(old.id), store.events(old.id, 0, 100)) == before
        store.finish(new.id, "two", new.fence, service_pb2.SUCCEEDED, "", b"")

    def test_old_lease_of_the_same_service_writes_nothing_either(self, store: JobStore) -> None:
        submit(store, "1")
        old = claimed(store, seconds=0.0)
        claimed(store)
        with pytest.raises(LeaseLostError):
            store.finish(old.id, "one", old.fence, service_pb2.SUCCEEDED, "", b"")

    def test_renewed_lease_is_not_taken_over(self, store: JobStore) -> None:
        submit(store, "1")
        job = claimed(store, seconds=5.0)
        assert store.renew("one", 60)[job.id].fence == job.fence
        assert claim(store, "two") is None

    def test_lapsed_lease_is_not_renewed(self, store: JobStore) -> None:
        submit(store, "1")
        claimed(store, seconds=0.0)
        assert store.renew("one", 60) == {}

    def test_leases_of_a_service_that_is_gone_are_free_at_once(self, store: JobStore) -> None:
        submit(store, "1")
        job = claimed(store)
        store.disown("one")
        assert claimed(store, "two").id == job.id


class TestEvents:
    def test_events_are_numbered_in_order_and_read_from_a_position(self, store: JobStore) -> None:
        submit(store, "1")
        job = claimed(store)
        for text in ("x", "y"):
            events = (service_pb2.JobEvent(message=text), service_pb2.JobEvent(message=text * 2))
            store.record(job.id, "one", job.fence, Progress(events, b"", text, False))
        assert [event.message for event in store.events(job.id, 1, 100)] == ["x", "xx", "y", "yy"]
        assert [event.message for event in store.events(job.id, 2, 2)] == ["xx", "y"]
        assert store.sequences([job.id, "none"]) == {job.id: 5}
        found = store.get(job.id)
        assert found is not None and found.positions == "y"

    def test_ended_job_has_all_its_states_and_its_reason(self, store: JobStore) -> None:
        job = submit(store, "1")[0]
        claim(store)
        store.requeue(job.id, "one", 1, "crashed")
        claim(store)
        store.finish(job.id, "one", 2, service_pb2.FAILED, "the disk is full", b"")
        assert states(store, job) == ["PENDING", "PENDING", "FAILED"]
        found = store.get(job.id)
        assert found is not None and found.error == "the disk is full" and found.ended_at is not None


class TestCancel:
    def test_job_that_was_never_started_ends_at_once(self, store: JobStore) -> None:
        job = submit(store, "1")[0]
        for _ in range(2):
            cancelled = store.request_cancel(job.id)
            assert cancelled is not None and cancelled.state == service_pb2.CANCELLED
        assert states(store, job) == ["PENDING", "CANCELLED"] and claim(store) is None

    def test_running_job_is_marked_for_its_holder(self, store: JobStore) -> None:
        job = submit(store, "1")[0]
        claim(store)
        assert store.request_cancel(job.id) == store.get(job.id)
        assert store.renew("one", 60)[job.id].job.cancel_requested

    def test_job_that_waits_after_a_crash_is_claimed_first_so_that_what_it_left_is_released(
        self, store: JobStore
    ) -> None:
        job = submit(store, "1")[0]
        claim(store)
        store.requeue(job.id, "one", 1, "crashed")
        submit(store, "2", principal="bob")
        cancelled = store.request_cancel(job.id)
        assert cancelled is not None and cancelled.state == service_pb2.PENDING
        assert claimed(store).id == job.id

    def test_ended_job_stays_as_it_is_and_an_unknown_one_is_none(self, store: JobStore) -> None:
        job = submit(store, "1")[0]
        claim(store)
        store.finish(job.id, "one", 1, service_pb2.SUCCEEDED, "", b"")
        assert store.request_cancel(job.id) == store.get(job.id)
        assert store.request_cancel("none") is None


def test_list_is_newest_first_by_principal_state_and_position(store: JobStore) -> None:
    jobs = submit(store, "1", "2", "3")
    bobs = submit(store, "1", principal="bob")[0]
    store.request_cancel(jobs[1].id)

    def ids(*arguments: object) -> list[str]:
        return [job.id for job in store.list_jobs(*arguments)]  # type: ignore[arg-type]

    assert ids(None, 0, None, 10) == [bobs.id, jobs[2].id, jobs[1].id, jobs[0].id]
    assert ids("ann", 0, None, 2) == [jobs[2].id, jobs[1].id]
    assert ids("ann", 0, jobs[1].number, 2) == [jobs[0].id]
    assert ids(None, service_pb2.CANCELLED, None, 10) == [jobs[1].id]
    assert store.count_by_state() == {service_pb2.PENDING: 3, service_pb2.CANCELLED: 1}


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://host/name", "must be"),
        ("postgresql://ann:secret@host/name", "holds a password"),
        ("postgresql://host/name?password=secret", "holds a password"),
        ("postgresql://host/name?nonsense=1", "not one of PostgreSQL"),
    ],
)
def test_bad_urls_are_sentences_without_the_secret(url: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        open_store(url)
    assert "secret" not in str(raised.value)


def test_server_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError):
        open_store(f"postgresql://ann@/x?host={tmp_path}")
