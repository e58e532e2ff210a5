"""Objects in the shared memory of the node that stores them, served to other nodes by one server a node.

What ZeroMQ, UCX and Margo share: all but the transport. A put is one copy into this node's shared
memory; readers on the same node map it, others fetch it in chunks. A key names its node, so every
operation goes there directly: there is no central server.

A session that has objects on several nodes is at home on the node of the process that began it, which
its name tells. A process that stores something for it elsewhere tells the home so, once, and takes
over what is left of the lease; who renews or ends the session does so on every node that the home knows of.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

from proxystore_core.connectors.arguments import check_port, check_seconds, check_text
from proxystore_core.connectors.base import (
    USER_SESSION,
    Buffer,
    ByURL,
    Held,
    Key,
    check_lease,
    check_session,
    never_comes,
    no_reservation,
)
from proxystore_core.connectors.node_client import Channel, NodeClient
from proxystore_core.connectors.node_later import LONGEST_WAIT
from proxystore_core.connectors.node_place import (
    LOOPBACK,
    SECRET,
    Place,
    address_of,
    home_of,
    load_secret,
    mark_of,
    name_of_session,
)
from proxystore_core.connectors.node_process import NodeProcess, places_of
from proxystore_core.connectors.node_protocol import Operation, Request, Status
from proxystore_core.connectors.node_server import members_of, store_name
from proxystore_core.connectors.shm import ShmConnector, node
from proxystore_core.errors import ConfigurationError, RefusedError, StoreError, UnreachableError
from proxystore_core.urls import StoreURL

__all__ = ["NodeConnector"]

_NAME = re.compile(r"[A-Za-z0-9_-]{0,32}")
_KEY = re.compile(r"([a-z0-9.-]{1,64}:[0-9]{1,5})\.([A-Za-z0-9_-]{1,64})\.([0-9a-f]{20}w?(?:\.disk)?)")
_STOCK = 256 << 20
_FIRST_PORT, _PORTS = 20_000, 12_000  # below those that the system gives to clients
_TELL_AGAIN = 30.0  # seconds after which a home that could not be reached is tried again
_PAUSES = 0.05, 1.0  # seconds between two questions of one who is not let wait: first, and longest
_GONE: Any = object()
_SIDE_BY_SIDE = 16  # nodes that are told something at the same time


class NodeConnector(ByURL):
    """Keeps objects in this node's shared memory; a subclass says how nodes talk.

    Nothing is started before the first operation.

    Args:
        port: of this node's server; 0 for one that is free.
        interface: network interface at which the server listens; loopback by default.
        address: instead, an address of this host or a network in which it has one (``10.0.0.0/8``).
            ``PROXYSTORE_NODE_ADDRESS`` in the environment takes precedence over both.
        own: the transport's own options as they were given.
        name: connectors of one name share their objects.
        secret: what all nodes share, at least 16 characters; never part of the URL. By default
            ``PROXYSTORE_NODE_SECRET``, else the one in ``secret_file``.
        secret_file: path of a file with it, mode 0600; by default one in the user's
            configuration directory, made when missing; on loopback one that is made for the node.
        deadline: seconds that an operation may take, besides moving its bytes.
        connect_timeout: seconds for a connection to open, and for a server to come back.
        stock: as `ShmConnector`.
        spill: as `ShmConnector`.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    checksum: ClassVar[bool] = False  # the node server's protocol has its own, for what leaves the node
    cheap_get: ClassVar[bool] = False
    far: ClassVar[bool] = True

    # What a transport says.

    _module: ClassVar[str]
    """Whose ``listen`` the server calls."""

    _parameters: ClassVar[dict[str, Callable[[str], Any]]] = {}

    def _transport(self, address: str) -> dict[str, Any]:
        """What the server's side of the transport has to know; equal for all who share a node."""
        return {}

    def _connect(self, address: str, port: int, until: float) -> Channel:
        """As `node_client.Connect`."""
        raise NotImplementedError

    # The rest is the same for all.

    def __init__(
        self,
        port: int,
        interface: str | None,
        address: str | None,
        own: Mapping[str, Any],
        *,
        name: str = "",
        secret: str | None = None,
        secret_file: str | os.PathLike[str] | None = None,
        deadline: float = 30.0,
        connect_timeout: float = 5.0,
        stock: int = _STOCK,
        spill: str | os.PathLike[str] | None = None,
    ) -> None:
        check_text("name", name)
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"{name!r} is no name of a store: use at most 32 letters, digits, - and _",
                remedy="An address goes into ?address=, an interface into ?interface=.",
            )
        check_port(port, least=0)
        texts = {"interface": interface, "address": address, "secret": secret}
        paths = {"secret_file": secret_file, "spill": spill}
        for what, given in {**texts, **paths}.items():
            if given is not None:
                check_text(what, given, path=what in paths, shown=what != "secret")
                if not os.fspath(given):
                    raise ConfigurationError(f"{what} is empty: leave it out, or say which")
        if interface is not None and address is not None:
            raise ConfigurationError("a node has an interface or an address, not both")
        deadline = check_seconds("deadline", deadline)
        connect_timeout = check_seconds("connect_timeout", connect_timeout)
        self.name = name
        self._given = {
            "name": name,
            "port": port,
            "interface": interface,
            "address": address,
            **own,
            "secret_file": None if secret_file is None else os.path.abspath(secret_file),
            "deadline": deadline,
            "connect_timeout": connect_timeout,
            "stock": stock,
            "spill": None if spill is None else os.path.abspath(spill),
        }
        self._secret = secret
        self._url = self._describe(own)
        self._mark = mark_of(
            (self.schemes[0], port, interface, address, sorted(own.items()), self._given["spill"])
        )
        self._client = NodeClient(self._url, self._connect, self._key, deadline, connect_timeout)
        self._told: dict[tuple[str, Place], float] = {}  # when a session's home is told (again) of this node
        self._spaces: dict[str, str] = {}  # by host
        self._moved: dict[Place, Place] = {}  # nodes that listen elsewhere by now

    def _describe(self, own: Mapping[str, Any]) -> str:
        usual = {"deadline": 30.0, "connect_timeout": 5.0, "stock": _STOCK}
        options = {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in self._given.items()
            if name not in ("name", "port") and value is not None and value != usual.get(name)
        }
        query = urllib.parse.urlencode(options, safe="/:")
        port = f":{self._given['port']}" if self._given["port"] else ""
        return f"{self.schemes[0]}://{self.name}{port}{'?' if query else ''}{query}"

    @property
    def url(self) -> str:
        return self._url

    def config(self) -> dict[str, Any]:
        return dict(self._given)

    @classmethod
    def from_url(cls, url: str) -> NodeConnector:
        parts = StoreURL.parse(url)
        parts.expect(host=True, port=True)
        known: dict[str, Callable[[str], Any]] = {
            **dict.fromkeys(("interface", "address", "secret_file", "spill"), str),
            **dict.fromkeys(("deadline", "connect_timeout"), float),
            "stock": int,
            **cls._parameters,
        }
        return cls(name=parts.host, port=parts.port or 0, **parts.options(known))

    @property
    def place(self) -> str:
        """This host for a node on loopback, else anywhere."""
        return node() if self._node.address == LOOPBACK else ""

    @property
    def scattered_leases(self) -> bool:
        """Whether there are other nodes: each sees the leases of sessions that have objects there."""
        return self._node.address != LOOPBACK

    def holds(self, key: Key) -> bool:
        """Whether the object is in this node's own shared memory, if it is anywhere."""
        match = _KEY.fullmatch(key)
        return match is not None and match[1].rpartition(":")[0] == self._node.host

    def new_session(self, name: str = "") -> str:
        """A name for a session that begins here; it tells every node where the session is at home."""
        return name_of_session(self._node.process.enter(), self._mark, name)

    def _home(self, session: str) -> Place | None:
        """The other node that is the session's home; None where this one is, or there is none but this."""
        home = home_of(session, self._mark)
        if home is None or home.host != self._node.host:
            return home
        process = self._node.process
        return None if home == process.enter() or process.was_at(home) else home

    def put(self, data: Sequence[Buffer], *, session: str = USER_SESSION) -> Key:
        place = self._join(session)
        return self._named(place, self._node.memory.put(data, session=session))

    def reserve(self, *, session: str = USER_SESSION) -> Key:
        place = self._join(session)
        return self._named(place, self._node.memory.reserve(session=session))

    def set(self, key: Key, data: Sequence[Buffer]) -> None:
        place, session, name = self._parse(key)
        mine, local = self._look_here(place, session, name)
        if local is not None and (mine or self._node.memory.has(session, name)):
            self._node.memory.set(local, data)
            return

        def upload(at: Place) -> None:
            self._client.upload(at, self._space(at), session, name, data)

        if self._reach(place, session, upload) is _GONE:
            raise no_reservation(self.url, key)

    def wait(self, key: Key, timeout: float | None = None) -> bool:
        place, session, name = self._parse(key)
        mine, local = self._look_here(place, session, name)
        if local is not None and (mine or self._node.memory.has(session, name)):
            return self._node.memory.wait(local, timeout)
        until = math.inf if timeout is None else time.monotonic() + timeout
        pause = _PAUSES[0]
        while True:
            asked = time.monotonic()
            seconds = min(LONGEST_WAIT, max(0.0, until - asked))
            status = self._ask(place, Operation.WAIT, session, name, seconds)
            if status is Status.MISSING:
                raise never_comes(self.url, key)
            now = time.monotonic()
            if status is Status.CONTENT or now >= until:
                return status is Status.CONTENT
            if now - asked < seconds / 2:  # too many others wait there
                time.sleep(min(pause, until - now))
                pause = min(2 * pause, _PAUSES[1])

    def get(self, key: Key) -> Buffer | None:
        place, session, name = self._parse(key)
        mine, local = self._look_here(place, session, name)
        if local is not None:
            data = self._node.memory.get(local)
            if data is not None or mine:
                return data
        found = self._reach(place, session, lambda at: self._client.fetch(at, self._space(at), session, name))
        return None if found is _GONE else found

    def exists(self, key: Key) -> bool:
        place, session, name = self._parse(key)
        mine, local = self._look_here(place, session, name)
        if local is not None and (self._node.memory.exists(local) or mine):
            return self._node.memory.exists(local)
        return self._ask(place, Operation.EXISTS, session, name) is Status.CONTENT

    def evict(self, key: Key) -> None:
        place, session, name = self._parse(key)
        mine, local = self._look_here(place, session, name)
        if local is not None and (mine or self._node.memory.has(session, name)):
            self._node.memory.evict(local)
        else:
            self._ask(place, Operation.EVICT, session, name)

    def renew(self, session: str, seconds: float) -> None:
        check_lease(session, seconds, self.url)
        here = self._node
        request = functools.partial(Request, Operation.RENEW, session=session, seconds=seconds)
        home = self._home(session)
        if home is None:
            here.memory.renew(session, seconds)
            members = self._members(session)
        else:
            here.memory.extend(session, seconds)
            members = bytes(self._client.ask(home, request(space=self._space(home)))[1])
        self._tell(request, members, home)

    def extend(self, session: str, seconds: float) -> bool:
        """As `extend_lease`: the session's home knows whether it is over."""
        check_lease(session, seconds, self.url)
        here = self._node
        request = functools.partial(Request, Operation.RENEW, session=session, text="extend", seconds=seconds)
        home = self._home(session)
        there = here.memory.extend(session, seconds)
        if home is None:
            members = self._members(session)
        else:
            reply, data = self._client.ask(home, request(space=self._space(home)))
            there, members = reply.status is Status.DONE, bytes(data)
        if there:
            self._tell(request, members, home)
        return there

    def end(self, session: str) -> int:
        check_session(session, self.url)
        here = self._node
        request = functools.partial(Request, Operation.END, session=session)
        home, members = self._home(session), self._members(session)
        count = here.memory.end(session)
        for told in [told for told in self._told if told[0] == session]:
            self._told.pop(told, None)
        if home is not None:
            reply, data = self._client.ask(home, request(space=self._space(home)))
            members, count = bytes(data), count + reply.size
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(here.process.directory, f"members.{here.memory.name}.{session}"))
        return count + self._tell(request, members, home)

    # Of this node alone: each looks after its own.

    def keys(self, session: str) -> list[Key]:
        place, memory = self._node.process.enter(), self._node.memory
        return [self._named(place, key) for key in memory.keys(session)]

    def held(self) -> dict[str, Held]:
        return self._node.memory.held()

    def room(self) -> int | None:
        return self._node.memory.room()

    def sessions(self) -> dict[str, float]:
        return self._node.memory.sessions()

    def sweep(self) -> list[str]:
        return self._node.memory.sweep()

    def close(self, *, clear: bool = False) -> None:
        here = self.__dict__.get("_node")
        if here is not None:
            here.memory.close(clear=clear)
            here.process.close()
        self._client.close()

    # This node.

    @functools.cached_property
    def _node(self) -> _Node:
        given = self._given
        address = address_of(given["interface"], given["address"], self.url)
        known = self._secret or given["secret_file"] or os.environ.get(SECRET) or address != LOOPBACK
        secret = load_secret(self._secret, given["secret_file"], None, self.url) if known else b""
        digest = self._digest(address, secret)
        prefix = self._prefix(digest)
        memory = _Memory(
            store_name(prefix, self.name), stock=given["stock"], spill=given["spill"], of=self.url
        )
        parent = os.path.dirname(memory.store_dir)
        directory = os.path.join(parent, f"proxystore-{os.geteuid()}.{prefix}")
        process = NodeProcess(
            directory, self.url, functools.partial(self._order, address, prefix, directory, digest)
        )
        host = Place.at(address, 1).host
        return _Node(address, host, memory, process, secret)

    def _digest(self, address: str, secret: bytes) -> str:
        """Tells the node at an address from all others; who has the same options knows it."""
        given = self._given
        identity = repr((address, given["port"], given["spill"], sorted(self._transport(address).items())))
        return hashlib.blake2b(identity.encode(), digest_size=6, key=secret).hexdigest()

    def _prefix(self, digest: str) -> str:
        return f"{self.schemes[0].partition('+')[0]}-{digest}"

    def _key(self) -> bytes:
        """Of the MACs, and what else the transport derives from the secret."""
        here = self._node
        if here.secret:
            return here.secret
        here.process.use()
        key = here.process.key
        if key is None:
            key = here.process.key = load_secret(None, None, here.process.directory, self.url)
        return key

    def _order(self, address: str, prefix: str, directory: str, digest: str) -> dict[str, Any]:
        port = self._given["port"]
        ports = [port]
        if not port:
            # Where the last one listened, so that keys stay good; else most likely where any other would.
            ports = [place.port for place in places_of(directory)[:1]]
            wish = int.from_bytes(hashlib.blake2b(f"{os.geteuid()} {digest}".encode()).digest()[:4], "big")
            ports = [*(port for port in ports if port), _FIRST_PORT + wish % _PORTS, 0]
        return {
            "module": self._module,
            "address": address,
            "ports": ports,
            "key": self._key().hex(),
            "options": self._transport(address),
            "prefix": prefix,
            "storage": {"spill": self._given["spill"]},
        }

    def _parse(self, key: Key) -> tuple[Place, str, str]:
        match = _KEY.fullmatch(key)
        place = match and Place.parse(match[1])
        if match is None or place is None:
            raise RefusedError("not a key of this store", store=self.url, key=key[:200])
        if place.host != self._node.host:
            place.address(self.url, key)  # says so if it is none
        return place, match[2], match[3]

    def _named(self, place: Place, local: Key) -> Key:
        """The key, as others know it, of what is in this node's memory."""
        return f"{place}{local.removeprefix(self._node.memory.node)}"

    def _look_here(self, place: Place, session: str, name: str) -> tuple[bool, Key | None]:
        """Whether the object is this node's, and its key in this node's memory if it may be there.

        A node that came back at another port still has what it had.
        """
        here = self._node
        if place.host != here.host:
            return False, None
        return here.process.enter() == place, f"{here.memory.node}.{session}.{name}"

    # Other nodes.

    def _ask(
        self, place: Place, operation: Operation, session: str, name: str, seconds: float = 0.0
    ) -> Status:
        def ask(at: Place) -> Status:
            request = Request(operation, self._space(at), session, name, seconds=seconds)
            return self._client.ask(at, request, seconds=seconds)[0].status

        status = self._reach(place, session, ask)
        return Status.MISSING if status is _GONE else status

    def _reach(self, place: Place, session: str, do: Callable[[Place], Any]) -> Any:
        """What another node says, wherever it listens by now.

        A node that was killed and finds its port taken comes back at another one. It is found where the
        session's home has heard of it since.

        Returns:
            `_GONE` where it was this very node that listened there, which has no such object.
        """
        now = self._moved.get(place, place)
        try:
            return do(now)
        except UnreachableError:
            if self._node.process.was_at(place):
                return _GONE
            for at in self._whereabouts(place, session):
                if at != now:
                    with contextlib.suppress(UnreachableError):
                        answer = do(at)
                        if len(self._moved) > 1000:
                            self._moved.clear()
                        self._moved[place] = at
                        return answer
            self._moved.pop(place, None)
            raise

    def _whereabouts(self, place: Place, session: str) -> list[Place]:
        """Where else a session's home knows a node of that host, the latest first."""
        if home_of(session, self._mark) is None:
            return []
        home = self._home(session)
        if home is None:
            members = self._members(session)
        elif home.host == place.host:
            return []  # it is the home that is looked for
        else:
            try:
                request = Request(Operation.MEMBERS, self._space(home), session)
                members = bytes(self._client.ask(home, request)[1])
            except StoreError:
                return []
        return [at for at in reversed(_places(members)) if at.host == place.host and at != place]

    def _space(self, place: Place) -> str:
        """What the shared memory of this store is called on a node: no other has one of that name."""
        space = self._spaces.get(place.host)
        if space is None:
            digest = self._digest(LOOPBACK if place.host == node() else place.host, self._node.secret)
            space = self._spaces[place.host] = store_name(self._prefix(digest), self.name)
        return space

    def _members(self, session: str) -> bytes:
        return members_of(self._node.process.directory, self._node.memory.name, session)

    def _join(self, session: str) -> Place:
        """Tell a session's home that there will be objects of it here, and take over its lease; this node.

        Before the first object: one whose writer is killed is then the session's to evict, like any other.
        """
        place, home = self._node.process.enter(), self._home(session)
        told = session, place
        now = time.monotonic()
        if home is None or self._told.get(told, 0.0) > now:
            return place
        if len(self._told) > 1000:
            self._told.clear()
        try:
            request = Request(Operation.JOIN, self._space(home), session, text=str(place))
            reply, _ = self._client.ask(home, request)
            self._told[told] = float("inf")
            if reply.status is Status.DONE:
                self._node.memory.renew(session, reply.size / 1000)
        except StoreError:  # the objects here have ten minutes, and the next put tries again
            self._told[told] = now + _TELL_AGAIN
        return place

    def _tell(self, request: Callable[..., Request], members: bytes, home: Place | None) -> int:
        """Ask a session's other nodes the same; the sum of counts. One out of reach forgets by itself."""

        def tell(place: Place) -> int:
            try:
                return self._client.ask(place, request(space=self._space(place)))[0].size
            except StoreError:
                return 0

        process = self._node.process
        here = process.enter()
        others = {place for place in _places(members) if place not in (here, home)}
        places = sorted(place for place in others if not process.was_at(place))
        if len(places) < 2:
            return sum(map(tell, places))
        with ThreadPoolExecutor(min(len(places), _SIDE_BY_SIDE), "proxystore-nodes") as executor:
            return sum(executor.map(tell, places))


class _Memory(ShmConnector):
    """A node's shared memory, whose errors name the store that it belongs to."""

    _refill: ClassVar[float] = 0.1  # meanwhile others fetch what was put, with all that the cores can do

    def __init__(self, name: str, *, of: str, **options: Any) -> None:
        self._of = of
        super().__init__(name, **options)

    @property
    def url(self) -> str:
        return self._of


class _Node(NamedTuple):
    """What a process knows of its own node.

    Attributes:
        address: at which its server listens.
        host: as keys name it.
        memory: its objects.
        process: its server.
        secret: that it shares with others; empty for one that the node's directory keeps.
    """

    address: str
    host: str
    memory: ShmConnector
    process: NodeProcess
    secret: bytes


def _places(lines: bytes) -> list[Place]:
    found = map(Place.parse, lines.decode("ascii", "replace").split())
    return [place for place in found if place is not None]
