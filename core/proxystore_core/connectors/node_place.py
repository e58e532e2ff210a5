"""Where a node listens, and the secret that it shares with the others."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import ipaddress
import os
import re
import secrets
import socket
import struct
from typing import NamedTuple

from proxystore_core.connectors.shm import node
from proxystore_core.errors import ConfigurationError, RefusedError, UnreachableError
from proxystore_core.private import read_private

__all__ = [
    "ADDRESS",
    "LOOPBACK",
    "SECRET",
    "Place",
    "address_of",
    "home_of",
    "load_secret",
    "mark_of",
    "name_of_session",
]

ADDRESS = "PROXYSTORE_NODE_ADDRESS"  # the variable's name
SECRET = "PROXYSTORE_NODE_SECRET"
LOOPBACK = "127.0.0.1"
_GROUPS = ipaddress.IPv4Address("224.0.0.0")  # from here on addresses are of several hosts, or of none
_SIOCGIFADDR = 0x8915  # linux/sockios.h
_SHORTEST = 16  # characters of a secret: whoever listens to the network may guess shorter ones
_PLACE = re.compile(r"([a-z0-9][a-z0-9.-]{0,63}):([1-9][0-9]{0,4})")
_HOME = re.compile(r"([a-z]{4})([0-9a-f]{8})([0-9a-f]{4})")
_LONGEST = 64  # characters of a session's name


class Place(NamedTuple):
    """A node, as keys name it.

    Attributes:
        host: an IPv4 address; for a node on loopback a name of the shared memory that it serves,
            because loopback is another place on every host.
        port: of its server.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Place | None:
        """The inverse of ``str``, or None when it is no place."""
        return _parsed(text)

    @classmethod
    def at(cls, address: str, port: int) -> Place:
        """The place of this host's node that listens at an address."""
        return cls(node() if address == LOOPBACK else address, port)

    def address(self, store: str, key: str | None = None) -> str:
        """The IPv4 address to connect to.

        Raises:
            UnreachableError: the node listens on the loopback of another host.
            RefusedError: the place is none that a node could have.
        """
        if self.host == node():
            return LOOPBACK
        with contextlib.suppress(ValueError):
            return _numeric(self.host)
        if "." in self.host or "-" not in self.host:
            raise RefusedError("not a key of this store", store=store, key=key)
        raise UnreachableError(
            f"the object is on {self.host}, which listens on loopback only; this process is on {node()}",
            store=store,
            key=key,
            remedy="Name a network that the hosts share: ?interface=eth0 or ?address=10.0.0.0/8.",
        )


@functools.lru_cache(256)
def _numeric(host: str) -> str:
    return str(ipaddress.IPv4Address(host))


@functools.lru_cache(256)  # every key begins with one of few
def _parsed(text: str) -> Place | None:
    match = _PLACE.fullmatch(text)
    return None if match is None or int(match[2]) > 65535 else Place(match[1], int(match[2]))


def address_of(interface: str | None, address: str | None, store: str) -> str:
    """The IPv4 address at which this host's node listens.

    Args:
        interface: name of a network interface of this host.
        address: an address of this host, its name, or a network in which it has an address (``10.0.0.0/8``).
            The environment's takes precedence over both.
        store: the connector's URL, for messages.

    Raises:
        ConfigurationError: this host has no such interface or address.
    """
    given = os.environ.get(ADDRESS)
    if given:
        interface, address = None, given
    if interface is not None:
        return _of_interface(interface, store)
    if address is None:
        return LOOPBACK
    if "/" in address:
        return _in_network(address, store)
    try:
        found = socket.gethostbyname(address)
    except OSError as error:
        raise ConfigurationError(f"no address of {address!r}: {error}", store=store) from error
    if found.startswith("127."):
        return LOOPBACK
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            if found == "0.0.0.0" or ipaddress.IPv4Address(found) >= _GROUPS:
                raise OSError("it is that of all, or of several hosts")
            probe.bind((found, 0))
        except OSError as error:
            raise ConfigurationError(
                f"{address} is no address of this host",
                store=store,
                remedy=(
                    "Name what holds on every host: ?interface=eth0 or ?address=10.0.0.0/8; "
                    f"or set {ADDRESS} on each."
                ),
            ) from error
    return found


def _of_interface(name: str, store: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            request = struct.pack("256s", os.fsencode(name)[:15])
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError as error:
            there = ", ".join(found for _, found in socket.if_nameindex())
            raise ConfigurationError(
                f"this host has no interface {name!r} with an IPv4 address",
                store=store,
                remedy=f"It has: {there}.",
            ) from error
    found = socket.inet_ntoa(answer[20:24])
    return LOOPBACK if found.startswith("127.") else found


def _in_network(text: str, store: str) -> str:
    try:
        network = ipaddress.IPv4Network(text, strict=False)
    except ValueError as error:
        raise ConfigurationError(
            f"{text!r} is no network: expected for example 10.0.0.0/8", store=store
        ) from error
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        with contextlib.suppress(OSError):
            probe.connect((str(network.network_address + (network.num_addresses > 1)), 9))  # sends nothing
            found: str = probe.getsockname()[0]
            if ipaddress.IPv4Address(found) in network:
                return LOOPBACK if found.startswith("127.") else found
    raise ConfigurationError(f"this host has no address in {text}", store=store)


def mark_of(options: object) -> str:
    """Four letters that tell one store's nodes from all others', in sessions' names.

    Args:
        options: what all processes of the store are given alike, and says at which nodes it is.
    """
    number = int.from_bytes(hashlib.blake2b(repr(options).encode(), digest_size=8).digest(), "big")
    return "".join(chr(ord("a") + number // 26**power % 26) for power in range(4))


def name_of_session(place: Place, mark: str, name: str = "") -> str:
    """A new session's name, which tells every node where the session is at home.

    Args:
        place: the node.
        mark: as `mark_of`: other stores' nodes are others, at other ports.
        name: what nodes of others have made up for this session already.

    Raises:
        ConfigurationError: it would be longer than a name may be.
    """
    name = name or secrets.token_hex(6)
    if place.host == node() or home_of(name, mark) is not None:
        return name  # all of it is here; or a store of the same nodes has said so already
    named = f"{mark}{ipaddress.IPv4Address(place.host).packed.hex()}{place.port:04x}-{name}"
    if len(named) > _LONGEST:
        raise ConfigurationError(
            "a session can be at home at three networks of nodes, and this is one more",
            remedy="Parts of multi:// with the same interface or address, port and spill share nodes.",
        )
    return named


def home_of(session: str, mark: str) -> Place | None:
    """The node that knows on which others a session has objects; None for a session of one node.

    Args:
        session: its name.
        mark: as `mark_of`, of the store whose nodes are meant.
    """
    for part in session.split("-")[:-1]:
        match = _HOME.fullmatch(part)
        if match is not None and match[1] == mark and int(match[3], 16):
            return Place(str(ipaddress.IPv4Address(bytes.fromhex(match[2]))), int(match[3], 16))
    return None


def load_secret(given: str | None, path: str | None, local: str | None, store: str) -> bytes:
    """The secret, 32 bytes.

    Args:
        given: as the user has it; by default the environment's.
        path: of a file that holds it; by default one in the user's configuration.
        local: directory that keeps a secret of this host alone, for nodes on loopback; None for others.
        store: the connector's URL, for messages.

    Raises:
        ConfigurationError: too short, or no such file.
        RefusedError: others may read the file.
    """
    text = given or (os.environ.get(SECRET) if path is None else None)
    if not text:
        if path is None and local is not None:
            path = os.path.join(local, "secret")
        usual = path is None or local is not None
        if path is None:
            path = os.path.join(_configuration(), "node.secret")
        if usual:
            _make(path)
        text = read_private(path, store=store)
    if len(text) < _SHORTEST:
        raise ConfigurationError(
            f"the secret has {len(text)} characters: expected at least {_SHORTEST}",
            store=store,
            remedy='Make one: python -c "import secrets; print(secrets.token_hex(32))".',
        )
    return hashlib.blake2b(text.encode(), digest_size=32, person=b"node secret").digest()


def _configuration() -> str:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "proxystore")


def _make(path: str) -> None:
    """Make a secret unless there is one; whole, whoever else does so at the same time."""
    if os.path.exists(path):
        return
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    part = f"{path}.{secrets.token_hex(8)}"
    fd = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, secrets.token_hex(32).encode() + b"\n")
        os.close(fd)
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
    finally:
        os.unlink(part)
