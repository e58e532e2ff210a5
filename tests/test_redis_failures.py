"""Redis servers that are lost, full or restarted in the midst of an object: nothing is lost silently."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.crc
from measures import Relay
from redis_servers import Server, knows_all, serving, serving_cluster
from waiting import until

from proxystore_core.connectors import redis_requests
from proxystore_core.connectors.base import Key
from proxystore_core.connectors.redis import RedisConnector
from proxystore_core.connectors.redis_cluster import RedisClusterConnector
from proxystore_core.errors import DeadlineError, FullError, UnreachableError
from proxystore_core.moving import listening

PART = 1 << 20


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[Server]]:
    with serving_cluster(tmp_path) as servers:
        yield servers


def server_of(servers: list[Server], place: str) -> Server:
    return servers[redis.crc.key_slot(place.encode()) * 3 // 16384]


def test_a_cluster_with_a_lost_node(cluster: list[Server]) -> None:
    for server in cluster:
        server.witness.config_set("cluster-require-full-coverage", "no")
    connector = RedisClusterConnector(
        [server.address for server in cluster], deadline=3, connect_timeout=0.5, prefix="lost"
    )
    keys = {
        key: bytes([number]) * 100 for number in range(48) if (key := connector.put([bytes([number]) * 100]))
    }
    big = connector.put([bytes(PART)] * 20)

    def of(key: Key) -> Server:
        return server_of(cluster, connector._field(*connector._parse(key)[:2], 0)[0])

    lost = cluster[2]
    assert {of(key).address for key in keys} == {server.address for server in cluster}
    lost.kill()
    for key, data in keys.items():
        if of(key) is not lost:
            assert connector.get(key) == data
    theirs = next(key for key in keys if of(key) is lost)
    for use in (
        lambda: connector.get(theirs),
        lambda: connector.get(big),
        lambda: connector.put([bytes(PART)] * 20),
    ):
        with pytest.raises((UnreachableError, DeadlineError)) as caught:
            use()
        assert caught.value.store == connector.url
    lost.start()
    until(lambda: all(knows_all(server, 3) for server in cluster))
    until(lambda: connector.get(theirs) is None)  # it kept nothing on disk
    assert connector.get(big) is None
    for key, data in keys.items():
        assert connector.get(key) == (None if of(key) is lost else data)
    again = connector.put([bytes(PART)] * 20)
    assert connector.get(again) == bytes(20 * PART)
    connector.close()


def test_what_a_put_left_that_lost_its_server_goes_with_the_next(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        relay = Relay(server.port)
        connector = RedisConnector("127.0.0.1", relay.port, connect_timeout=0.3)
        with relay:
            first = connector.put([b"data"])
            with listening(lambda nbytes, doing: relay.stop()), pytest.raises(UnreachableError):
                connector.put([bytes(PART)] * 20)

        def fields() -> int:
            return sum(len(server.witness.hkeys(place)) for place in server.witness.keys("ps:*"))

        assert fields() > 1
        with Relay(server.port, relay.port):
            key = connector.put([b"more"])
            assert [connector.get(each) for each in (first, key)] == [b"data", b"more"]
            assert fields() == 2
            connector.close(clear=True)


def test_parts_that_move_to_another_node(cluster: list[Server]) -> None:
    connector = RedisClusterConnector([cluster[0].address], prefix="moved")
    data = [bytes([number]) * PART for number in range(20)]
    key = connector.put(data)
    session, name, _ = connector._parse(key)
    place = connector._field(session, name, 3)[0]
    slot = redis.crc.key_slot(place.encode())
    source = server_of(cluster, place)
    target = next(server for server in cluster if server is not source)
    ids = {server: server.witness.execute_command("CLUSTER MYID").decode() for server in cluster}
    target.witness.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
    source.witness.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
    assert connector.get(key) == b"".join(data)
    source.witness.execute_command("MIGRATE", "127.0.0.1", target.port, place, 0, 5000)
    assert connector.get(key) == b"".join(data)  # asked for at the target, while the source is in charge
    for server in (target, source):
        server.witness.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])
    assert connector.get(key) == b"".join(data)
    other = RedisClusterConnector([cluster[0].address], prefix="moved")
    assert other.get(key) == b"".join(data)
    other.close()
    connector.evict(key)
    assert not connector.exists(key)
    connector.close()


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_full_with_a_policy_that_drops_keys(policy: str, tmp_path: Path) -> None:
    with serving(tmp_path, "--maxmemory", "30mb", "--maxmemory-policy", policy) as server:
        connector = RedisConnector("127.0.0.1", server.port)
        with pytest.warns(RuntimeWarning, match=policy):
            small = connector.put([b"data"])
        assert connector.get(small) == b"data"
        with pytest.raises(FullError, match="drops") as caught:
            connector.put([bytes(PART)] * 64)
        assert caught.value.store == connector.url
        assert "noeviction" in str(caught.value)
        connector.close()


def test_full_where_only_what_expires_is_dropped(tmp_path: Path) -> None:
    with serving(tmp_path, "--maxmemory", "30mb", "--maxmemory-policy", "volatile-lru") as server:
        connector = RedisConnector("127.0.0.1", server.port)
        with pytest.warns(RuntimeWarning, match="volatile-lru"):
            kept = connector.put([b"the user's"])
        for session in ("user", "s"):
            with pytest.raises(FullError):
                connector.put([bytes(PART)] * 64, session=session)
        assert connector.get(kept) == b"the user's"
        connector.close()


def test_a_restart_between_two_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path) as server:
        connector = RedisConnector("127.0.0.1", server.port, connect_timeout=30)
        data = [bytes([number]) * PART for number in range(20)]
        run, calls = connector._requests.run, 0

        def interrupted(*args: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 5:  # four windows are there
                server.kill()
                server.start()
            return run(*args)  # type: ignore[arg-type]

        connector.put([b"warm"])
        monkeypatch.setattr(connector._requests, "run", interrupted)
        assert connector.get(connector.put(data)) == b"".join(data)
        assert calls > 2 * 10  # all was written once more
        connector.close(clear=True)
        fields = [field for key in server.witness.keys("ps:*") for field in server.witness.hkeys(key)]
        assert fields == []


def test_a_put_that_is_interrupted_leaves_nothing(server: Server) -> None:
    connector = RedisConnector("127.0.0.1", server.port, prefix="interrupted")

    def interrupt(nbytes: int, doing: str) -> None:
        raise KeyboardInterrupt

    with listening(interrupt), pytest.raises(KeyboardInterrupt):
        connector.put([bytes(20 << 20)])
    assert connector.held() == {}
    connector.close()


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("lost", range(3))
@pytest.mark.parametrize("several", [False, True])
def test_evicting_what_was_set_later_when_an_answer_is_lost(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, several: bool, lost: int, killed: bool
) -> None:
    """It is asked again, or by the next one: the parts are found until they are gone."""
    if several:
        servers = request.getfixturevalue("cluster")
        connector: RedisConnector = RedisClusterConnector([each.address for each in servers], prefix="answer")
    else:
        connector = RedisConnector("127.0.0.1", request.getfixturevalue("server").port, prefix="answer")
    key, other = connector.reserve(), connector.reserve()
    connector.set(key, [bytes(3 * PART)])
    send, sent = redis_requests._send, 0

    def answer_lost(client: Any, commands: Any) -> Any:
        nonlocal sent
        replies = send(client, commands)
        sent += 1
        if sent == lost + 1:
            raise KeyboardInterrupt if killed else redis.ConnectionError("the answer is lost")
        return replies

    with monkeypatch.context() as patch:
        patch.setattr(redis_requests, "_send", answer_lost)
        with pytest.raises(KeyboardInterrupt) if killed and lost < 2 + several else contextlib.nullcontext():
            connector.evict_batch([key, other])
    connector.evict_batch([key, other])
    assert connector.held() == {}
    connector.close()


def test_a_connection_that_another_thread_closes_is_opened_again(server: Server) -> None:
    connector = RedisConnector("127.0.0.1", server.port, prefix="closed")
    key = connector.put([b"data"])
    asked = []

    def closed_in_the_midst(client: Any) -> Any:
        asked.append(client)
        if len(asked) == 1:
            connector.close()
            raise TypeError("argument must be an int, or have a fileno() method.")  # as redis-py says
        return client.ping()

    assert connector._requests.persist(closed_in_the_midst)
    assert asked[0] is not asked[1]
    assert connector.get(key) == b"data"
    with pytest.raises(TypeError, match="mine"):
        connector._requests.persist(lambda client: raise_(TypeError("mine")))
    connector.close(clear=True)


def raise_(error: Exception) -> None:
    raise error
