"""Globus Compute: what is its own. What every engine has is in test_globus_compute_contract.py."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import globus_tasks as tasks
import numpy as np
import pytest
from globus_compute_sdk import Executor as BareExecutor
from globus_compute_sdk import MPIFunction, ShellFunction
from globus_compute_sdk.errors import SerdeError, TaskExecutionFailed
from globus_compute_sdk.serialize import (
    AllCodeStrategies,
    AllowlistWildcard,
    ComputeSerializer,
    DillCode,
    DillDataBase64,
    JSONData,
    PureSourceTextInspect,
)
from globus_fakes import LIMIT, FakeService, pilot_jobs, process_pool
from globus_sdk import GlobusAPIError
from mounts import own_mounts, own_shared_memory
from waiting import until

from proxystore_core import ConfigurationError, MissingExtraError
from proxystore_integrations.carriers import NotDeliveredError
from proxystore_integrations.globus_compute import Executor, StoreData, strategy
from proxystore_integrations.globus_compute.engine import check_release
from proxystore_integrations.globus_compute.reach import check_reach
from proxystore_integrations.testing.tasks import wait_for

WAIT = 60
BIG = bytes(1_000_000)


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., FakeService]]:
    with ExitStack() as stack:

        def start(hostname: str | None = None, **options: Any) -> FakeService:
            engine = process_pool(**options)
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            return stack.enter_context(FakeService(engine, directory, hostname))

        yield start


@pytest.fixture(scope="module")
def service(serve: Callable[..., FakeService]) -> FakeService:
    return serve()


@pytest.fixture
def fresh(service: FakeService) -> FakeService:
    """The service with what it was told forgotten."""
    service.batches.clear()
    service.refuse = lambda batch: None
    return service


@pytest.fixture
def started() -> Iterator[Callable[..., Any]]:
    with ExitStack() as stack:

        def start(service: FakeService, kind: Any = Executor, **options: Any) -> Any:
            client = options.pop("client", None) or service.client()
            executor = kind(service.endpoint_id, client, **{"task_group_id": uuid.uuid4(), **options})
            executor.api_burst_limit = 1  # which is none
            return stack.enter_context(executor)

        yield start
    gc.collect()


@pytest.fixture
def executor(started: Any, fresh: FakeService) -> Any:
    return started(fresh)


def payloads(service: FakeService) -> list[str]:
    return [payload for _, batch in service.batches for tasks in batch["tasks"].values() for payload in tasks]


# -- Sizes --------------------------------------------------------------------------------------


def test_a_payload_is_small_whatever_is_in_it(executor: Any, fresh: FakeService) -> None:
    array = np.ones(12_500_000)
    assert executor.submit(np.sum, array).result(WAIT) == len(array)
    (payload,) = payloads(fresh)
    assert len(payload) <= 1000
    assert fresh.batches[0][0] <= 2000


def test_more_than_the_service_takes_both_ways(executor: Any, fresh: FakeService, started: Any) -> None:
    data = bytes(LIMIT + 1)
    back = executor.submit(tasks.double, data).result(WAIT)
    assert back == data + data
    bare = started(fresh, BareExecutor)
    assert "MaxResultSize" in bare.submit(tasks.text, LIMIT + 1).exception(WAIT).remote_data
    error = bare.submit(tasks.double, data).exception(WAIT)
    assert isinstance(error, GlobusAPIError)
    assert error.http_status == 413


def test_the_engine_that_endpoints_have_by_default(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = str(Path(sys.executable).parent)  # it starts one of the endpoint's
    monkeypatch.setenv("PATH", scripts, prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    with FakeService(pilot_jobs(), tmp_path) as service:
        executor = started(service)
        data = bytes(LIMIT + 1)
        back = executor.submit(tasks.double, data)
        assert executor.submit(tasks.length, back).result(WAIT) == 2 * len(data)
        assert back.result(WAIT) == data + data
        assert max(map(len, payloads(service))) <= 1000
        assert isinstance(executor.submit(tasks.length, 1).exception(WAIT), TaskExecutionFailed)
        assert list(executor.map(tasks.length, [b"1", BIG], chunksize=2)) == [1, len(BIG)]
        executor.shutdown()


def test_a_chain_goes_from_worker_to_worker(executor: Any) -> None:
    first = executor.submit(tasks.text, LIMIT + 1)
    second = executor.submit(tasks.double, first)
    assert executor.submit(tasks.length, second).result(WAIT) == 2 * (LIMIT + 1)
    assert first.attempt.result()._value is None
    assert second.result(WAIT) == first.result() * 2


# -- The SDK's ways -----------------------------------------------------------------------------


def test_map(executor: Any, fresh: FakeService) -> None:
    assert list(executor.map(tasks.length, [b"", b"1", BIG])) == [0, 1, len(BIG)]
    fresh.batches.clear()
    assert list(executor.map(tasks.double, range(10), chunksize=4, timeout=WAIT)) == list(range(0, 20, 2))
    assert len(payloads(fresh)) == 3
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(tasks.length, [], chunksize=0)


def test_futures_are_the_sdks(executor: Any) -> None:
    futures = [executor.submit(tasks.length, BIG), executor.submit(tasks.length, "1")]
    assert {future.result() for future in as_completed(futures, WAIT)} == {len(BIG), 1}
    assert all(uuid.UUID(future.task_id) for future in futures)
    assert futures[0]._metadata["task_group_uuid"] == executor.task_group_id
    assert str(executor.task_group_id) in repr(executor)
    assert "threshold=100 kB" in repr(executor)


def test_tasks_are_reloaded(executor: Any, fresh: FakeService, started: Any) -> None:
    big, small = executor.submit(tasks.text, len(BIG)), executor.submit(tasks.length, "1")
    failed = executor.submit(tasks.length, 1)
    assert len(big.result(WAIT)) == len(BIG)
    assert small.result(WAIT) == 1
    assert isinstance(failed.exception(WAIT), TaskExecutionFailed)
    with_group = started(fresh)
    again = {future.task_id: future for future in with_group.reload_tasks(executor.task_group_id)}
    assert again.keys() == {big.task_id, small.task_id, failed.task_id}
    assert again[big.task_id].result(WAIT) == big.result()
    assert again[small.task_id].result(WAIT) == 1
    assert isinstance(again[failed.task_id].exception(WAIT), TaskExecutionFailed)
    assert with_group.task_group_id == executor.task_group_id


def test_tasks_that_are_not_done_are_reloaded(fresh: FakeService, started: Any) -> None:
    first = started(fresh)
    first.submit(tasks.length, "").result(WAIT)
    waiting = ShellFunction("sleep 1; echo {what}")
    assert first.submit(waiting, what="done").cancel() is True
    again = started(fresh).reload_tasks(first.task_group_id)
    assert min(str(future.result(WAIT)) for future in again) == "0"


def test_tasks_that_their_client_did_not_wait_for(fresh: FakeService, started: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = started(fresh, store=f"file://{tmp_path / 'store'}", lease="30 s")
    busy = [first.submit(wait_for, str(go), np.ones(1)) for _ in range(2)]
    late = first.submit(tasks.double, BIG)
    until(lambda: late.task_id)
    first._link.leave()  # as at the interpreter's exit
    go.touch()
    assert [future.exception(WAIT) for future in (*busy, late)] == [None] * 3
    again = started(fresh)
    found = {future.task_id: future for future in again.reload_tasks(first.task_group_id)}
    assert found[late.task_id].result(WAIT) == BIG + BIG
    assert [found[future.task_id].result(WAIT) for future in busy] == [1, 1]


def test_what_is_set_goes_to_the_service(executor: Any, fresh: FakeService) -> None:
    executor.user_endpoint_config = {"account": "a"}
    assert executor.submit(tasks.length, BIG).result(WAIT) == len(BIG)
    executor.resource_specification = {"num_nodes": 2}
    error = executor.submit(tasks.length, BIG).exception(WAIT)
    assert "resource_specification is not supported" in str(error)
    first, second = (batch for _, batch in fresh.batches)
    assert first["user_endpoint_config"] == second["user_endpoint_config"] == {"account": "a"}
    assert second["resource_specification"] == {"num_nodes": 2}
    assert "resource_specification" not in first


def test_a_task_that_waits_goes_where_it_was_submitted_to(executor: Any, fresh: FakeService) -> None:
    endpoint = executor.endpoint_id
    executor.user_endpoint_config = {"account": "a"}
    waiting = executor.submit(tasks.length, executor.submit(tasks.double, BIG))
    executor.user_endpoint_config = {"account": "b"}
    executor.endpoint_id = uuid.uuid4()
    try:
        assert waiting.result(WAIT) == 2 * len(BIG)
    finally:
        executor.endpoint_id = endpoint
    assert [batch["user_endpoint_config"] for _, batch in fresh.batches] == [{"account": "a"}] * 2


def test_registered_functions_stay_what_they_are(executor: Any, fresh: FakeService, started: Any) -> None:
    bare = started(fresh, BareExecutor)
    identity = executor.register_function(tasks.double, description="twice")
    expected = bare.register_function(tasks.double, description="twice")
    assert fresh.functions[identity] == fresh.functions[expected]
    with pytest.raises(ValueError, match="already registered"):
        executor.register_function(tasks.double)
    array = np.ones(100_000)
    for future in (
        executor.submit(tasks.double, array),
        executor.submit(tasks.double, data=array),
        executor.submit_to_registered_function(identity, (array,)),
        executor.submit_to_registered_function(identity, kwargs={"data": array}),
        executor.submit_to_registered_function(uuid.UUID(identity), [array]),
    ):
        np.testing.assert_array_equal(future.result(WAIT), 2 * array)
    assert {name for _, batch in fresh.batches for name in batch["tasks"]} == {identity}
    assert max(map(len, payloads(fresh))) <= 1000
    other = started(fresh)
    assert other.register_function(tasks.double, identity) == identity
    assert other.submit(tasks.double, 2).result(WAIT) == 4
    assert list(fresh.batches[-1][1]["tasks"]) == [identity]


def test_a_function_is_registered_once(executor: Any, fresh: FakeService) -> None:
    before = len(fresh.functions)
    futures = [executor.submit(tasks.length, BIG) for _ in range(20)]
    assert [future.result(WAIT) for future in futures] == [len(BIG)] * 20
    assert len(fresh.functions) == before + 1
    assert executor.submit(tasks.documented, 1).result(WAIT) == 1
    function = list(fresh.functions.values())[-1]
    assert function["function_name"] == "documented"
    assert function["description"] == "What the service shows."


@pytest.mark.parametrize("kind", [ShellFunction, MPIFunction])
def test_shell_functions_are_untouched(kind: Any, executor: Any, fresh: FakeService, started: Any) -> None:
    function = kind("echo {what}")
    result = executor.submit(function, what="x" * 110_000).result(WAIT)
    ours = fresh.batches[-1][1]["tasks"]
    bare = started(fresh, BareExecutor).submit(function, what="x" * 110_000).result(WAIT)
    theirs = fresh.batches[-1][1]["tasks"]
    assert vars(result) == vars(bare)
    assert list(ours.values()) == list(theirs.values())
    (first,), (second,) = ours, theirs
    assert fresh.functions[first] == fresh.functions[second]


def test_without_an_endpoint(started: Any, fresh: FakeService) -> None:
    executor = started(fresh)
    executor.endpoint_id = None
    with pytest.raises(ValueError, match="No endpoint_id set"):
        executor.submit(tasks.length, BIG)
    with pytest.raises(RuntimeError, match="is shutdown"):
        executor.submit(tasks.length, BIG)


def test_after_the_end(started: Any, fresh: FakeService) -> None:
    executor = started(fresh)
    future = executor.submit(tasks.text, len(BIG))
    unread = executor.submit(tasks.double, BIG)
    assert len(future.result(WAIT)) == len(BIG)
    executor.shutdown()
    executor.shutdown()
    assert unread.result(WAIT) == BIG + BIG
    until(lambda: not executor._link.is_open)
    with pytest.raises(RuntimeError, match="is shutdown"):
        executor.submit(tasks.length, BIG)


# -- What is refused ----------------------------------------------------------------------------


def test_a_refused_batch_takes_nobody_along(started: Any, fresh: FakeService) -> None:
    executor = started(fresh, threshold="100 MB", batch_size=8)
    executor.submit(tasks.length, "").result(WAIT)
    large = bytes(LIMIT)  # four thirds of it, as text
    futures = [executor.submit(tasks.length, large if i == 3 else bytes(i)) for i in range(16)]
    errors = [future.exception(WAIT) for future in futures]
    assert [i for i, error in enumerate(errors) if error is not None] == [3]
    assert isinstance(errors[3], GlobusAPIError)
    assert "a lower threshold" in errors[3].__notes__[-1]
    assert [future.result() for i, future in enumerate(futures) if i != 3] == [*range(3), *range(4, 16)]
    assert executor.submit(tasks.length, "later").result(WAIT) == 5


@pytest.mark.parametrize("status", [403, 500])
def test_a_service_that_fails_is_asked_again(status: int, started: Any, fresh: FakeService) -> None:
    client = fresh.client()
    client._compute_web_client.v3.retry_config.max_retries = 0
    executor = started(fresh, client=client)
    executor.submit(tasks.length, "").result(WAIT)
    fresh.refuse = lambda batch: status
    before = len(fresh.batches)
    assert executor.submit(tasks.length, BIG).exception(WAIT).http_status == status
    assert len(fresh.batches) == before + 1
    fresh.refuse = lambda batch: None
    assert executor.submit(tasks.length, BIG).result(WAIT) == len(BIG)


def test_what_cannot_be_pickled_fails_alone(executor: Any) -> None:
    values = [b"1", (i for i in range(3)), BIG]
    futures = [executor.submit(tasks.length, value) for value in values]
    errors = [future.exception(WAIT) for future in futures]
    assert [type(error) for error in errors] == [type(None), errors[1].__class__, type(None)]
    assert isinstance(errors[1], SerdeError)


def test_a_cancelled_task_is_not_sent(executor: Any, fresh: FakeService) -> None:
    executor.submit(tasks.length, "").result(WAIT)
    fresh.batches.clear()
    with executor.client._request_lock:  # the SDK waits with a batch in its hands
        first = executor.submit(tasks.length, BIG)
        until(lambda: executor._tasks_to_send.empty())
        second = executor.submit(tasks.length, "second")
        assert second.cancel()
    assert first.result(WAIT) == len(BIG)
    assert executor.submit(tasks.length, "third").result(WAIT) == 5
    assert second.cancelled()
    assert len(payloads(fresh)) == 2


# -- Stores that the endpoint does not reach ----------------------------------------------------


@pytest.mark.parametrize("store", ["shm://", "file:///tmp/shared", "memory://"])
def test_a_local_store_and_a_remote_endpoint(store: str, serve: Any, started: Any) -> None:
    far = serve("login.cluster.example")
    executor = started(far, store=store)
    for _ in range(2):
        with pytest.raises(
            ConfigurationError, match=r"runs on login\.cluster\.example.*Set store to"
        ) as caught:
            executor.submit(tasks.length, 1)
        assert store in str(caught.value)
    assert ("reachable=True" in str(caught.value)) is (store != "memory://")
    assert far.batches == []


def test_an_endpoint_that_is_said_to_share_the_store(serve: Any, started: Any, tmp_path: Path) -> None:
    far = serve("login.cluster.example")
    executor = started(far, store=f"file://{tmp_path}", reachable=True)
    assert executor.submit(tasks.length, BIG).result(WAIT) == len(BIG)
    assert len(payloads(far)[0]) < 1000


def test_a_service_that_does_not_say_where() -> None:
    class Client:
        def get_endpoint_metadata(self, endpoint_id: str) -> dict[str, Any]:
            if endpoint_id == "forbidden":
                raise PermissionError("not yours")
            return {}

    with pytest.raises(ConfigurationError, match=r"does not say where endpoint forbidden runs .not yours"):
        check_reach("shm://", Client(), "forbidden")
    with pytest.raises(ConfigurationError, match="a host that it does not name"):
        check_reach("file:///a", Client(), "other")
    check_reach("redis://host", None, "any")


def test_a_worker_without_our_packages(serve: Any, started: Any) -> None:
    foreign = serve(initializer=tasks.forget_us)
    executor = started(foreign)
    with pytest.warns(RuntimeWarning, match=r"has no proxystore_\w+.*Install proxystore-integrations there"):
        assert executor.submit(tasks.length, BIG).result(WAIT) == len(BIG)
    with warnings.catch_warnings():  # it has been said
        warnings.simplefilter("error", RuntimeWarning)
        assert executor.submit(tasks.double, BIG).result(WAIT) == BIG + BIG
    attempts = len(foreign.batches)
    assert executor.submit(tasks.length, "1").result(WAIT) == 1
    assert len(foreign.batches) == attempts + 1
    strict = started(foreign, on_store_error="raise")
    for _ in range(2):
        with pytest.raises(NotDeliveredError, match="Install proxystore-integrations there"):
            strict.submit(tasks.length, 1).result(WAIT)


def test_a_worker_that_does_not_reach_the_store(serve: Any, started: Any) -> None:
    own_mounts()
    away = serve(initializer=own_shared_memory)
    executor = started(away)
    with pytest.warns(RuntimeWarning, match="cannot have the arguments of length"):
        assert executor.submit(tasks.length, BIG).result(WAIT) == len(BIG)
    identity = executor.register_function(tasks.double)
    assert executor.submit_to_registered_function(identity, (BIG,)).result(WAIT) == BIG + BIG
    strict = started(away, on_store_error="raise")
    with pytest.raises(NotDeliveredError, match="cannot have the arguments of length"):
        strict.submit(tasks.length, BIG).result(WAIT)


def test_a_function_that_fails_of_the_same_cause(executor: Any) -> None:
    def fails(data: Any) -> None:
        from proxystore_integrations.carriers import NotDeliveredError

        raise NotDeliveredError("it is another's")

    error = executor.submit(fails, BIG).exception(WAIT)
    assert isinstance(error, TaskExecutionFailed)


# -- Serializers --------------------------------------------------------------------------------


def test_functions_as_source(started: Any, fresh: FakeService) -> None:
    client = fresh.client(code_serialization_strategy=PureSourceTextInspect())
    executor = started(fresh, client=client)
    assert executor.submit(tasks.documented, BIG).result(WAIT) == BIG
    assert list(fresh.functions.values())[-1]["function_code"].count("What the service shows")
    assert len(payloads(fresh)[-1]) < 1000


def test_functions_in_all_ways(started: Any, fresh: FakeService) -> None:
    client = fresh.client(code_serialization_strategy=AllCodeStrategies())
    executor = started(fresh, client=client, results="always")
    assert executor.submit(tasks.double, bytes(LIMIT)).result(WAIT) == bytes(2 * LIMIT)


def test_data_as_json(started: Any, fresh: FakeService) -> None:
    client = fresh.client(data_serialization_strategy=JSONData())
    executor = started(fresh, client=client)
    assert executor.submit(tasks.length, "x" * 200_000).result(WAIT) == 200_000
    assert len(payloads(fresh)[-1]) > 200_000


def test_results_as_json(started: Any, fresh: FakeService) -> None:
    executor = started(fresh, result_serializers=[JSONData()])
    assert executor.submit(tasks.double, "x" * 200_000).result(WAIT) == "x" * 400_000
    assert len(payloads(fresh)[-1]) < 1000
    both = started(fresh, result_serializers=[JSONData(), DillDataBase64()])
    assert both.submit(tasks.double, bytes(LIMIT)).result(WAIT) == bytes(2 * LIMIT)


# -- The strategy -------------------------------------------------------------------------------


@pytest.fixture
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store's URL, which this process is configured with; its session ends as at the interpreter's exit."""
    url = f"file://{tmp_path / 'store'}"
    monkeypatch.setenv("PROXYSTORE_STORE", url)
    yield url
    strategy._leave()
    strategy._links.clear()


def test_the_strategy_and_the_sdks_own_executor(in_directory: str, started: Any, serve: Any) -> None:
    configured = serve(
        initializer=tasks.configure,
        initargs=(in_directory,),
        allowed_serializers=[AllowlistWildcard.CODE, StoreData],
    )
    serializer = ComputeSerializer(strategy_data=StoreData)
    strategies = [StoreData, DillDataBase64]
    bare = started(configured, BareExecutor, serializer=serializer, result_serializers=strategies)
    data = bytes(LIMIT)
    assert bare.submit(tasks.double, data).result(WAIT) == data + data
    assert bare.submit(tasks.length, data=data).result(WAIT) == LIMIT
    assert bare.submit(tasks.length, [1, 2]).result(WAIT) == 2
    assert max(map(len, payloads(configured))) <= 1000


def test_the_strategy_may_be_the_only_one_allowed(in_directory: str) -> None:
    serializer = ComputeSerializer(strategy_data=StoreData, allowed_deserializer_types=[DillCode, StoreData])
    assert serializer.deserialize(serializer.serialize({"a": [1]})) == {"a": [1]}
    with pytest.raises(SerdeError):
        serializer.deserialize(ComputeSerializer().serialize(1))


# -- Settings -----------------------------------------------------------------------------------


def test_settings_that_are_wrong() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'threshold'"):
        Executor(treshold=1)
    with pytest.raises(ConfigurationError, match="threshold"):
        Executor(threshold="many")


def test_releases() -> None:
    with pytest.raises(MissingExtraError, match=r"3\.0\.0 is too old"):
        check_release("3.0.0")
    with pytest.warns(RuntimeWarning, match="was tested with"):
        check_release("99.1.0")


def test_instrumented_it_never_fails_for_want_of_a_store(
    serve: Callable[..., FakeService], started: Callable[..., Any], fresh: FakeService
) -> None:
    import globus_compute_sdk

    import proxystore_integrations

    proxystore_integrations.instrument()
    try:
        kind = globus_compute_sdk.Executor
        assert issubclass(kind, BareExecutor)
        assert kind.__name__ == "Executor"
        executor = started(fresh, kind)
        assert executor.submit(len, BIG).result(WAIT) == len(BIG)
        assert fresh.batches[-1][0] < 100_000
        elsewhere = serve("elsewhere.example")
        executor = started(elsewhere, kind)
        with pytest.warns(RuntimeWarning, match="elsewhere.example"):
            assert executor.submit(len, BIG).result(WAIT) == len(BIG)
        assert elsewhere.batches[-1][0] > len(BIG)
    finally:
        proxystore_integrations.uninstrument()
    assert globus_compute_sdk.Executor is BareExecutor
