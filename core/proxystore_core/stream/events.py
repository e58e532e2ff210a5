"""What travels by a broker: where an item's object is, some metadata, never the object, never a pickle.

    [1, "<recipe>", [["<key>", <size>, "<kind>", <evict>, {<metadata>}], ...]]     a batch of events
    [1, null, ["<producer>", ...]]                                                 the end of a topic
as JSON in UTF-8. With a secret they are encrypted as objects are, in the name of the topic, and nothing else
is taken.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from proxystore_core.connectors.base import Key
from proxystore_core.encryption import decrypt, encrypt
from proxystore_core.errors import ConfigurationError, CorruptError
from proxystore_core.reference import Reference
from proxystore_core.secret import Secret

__all__ = ["End", "Event", "check_metadata", "decode", "encode", "encode_all"]

_VERSION = 1
_LIMIT = 1 << 20  # bytes of a message that is looked at
_ROOM = 64 << 10  # of these, for what an event holds beside its metadata


@dataclasses.dataclass(frozen=True)
class Event:
    """One item.

    Attributes:
        key: of its object.
        recipe: how to open the object's store.
        size: of the object, in bytes.
        kind: ``module:name`` of its class; empty when unknown.
        evict: whether the object leaves the store once it is consumed.
        metadata: the producer's own; what JSON holds.
    """

    key: Key
    recipe: str
    size: int = 0
    kind: str = ""
    evict: bool = True
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def reference(self, *, evict: bool) -> Reference:
        """The object's reference."""
        return Reference(self.key, self.recipe, self.size, self.kind, evict)


@dataclasses.dataclass(frozen=True)
class End:
    """No more items come from some producers.

    Attributes:
        producers: their unique names.
    """

    producers: frozenset[str]


def encode_all(
    events: Sequence[Event], topic: str = "", secret: Secret | None = None
) -> Iterator[tuple[int, bytes]]:
    """Messages of some events of one store, as few as hold them, each with the number of its events.

    Arguments and errors as of `encode`.
    """
    try:
        yield len(events), encode(events, topic, secret)
    except _TooBigError:
        if len(events) < 2:
            raise
        half = len(events) // 2
        yield from encode_all(events[:half], topic, secret)
        yield from encode_all(events[half:], topic, secret)


def encode(batch: Sequence[Event] | End, topic: str = "", secret: Secret | None = None) -> bytes:
    """The message of some events of one store, or of an end.

    Args:
        batch: the events.
        topic: what they are sent to.
        secret: what to encrypt them with, or None.

    Raises:
        ConfigurationError: metadata is not what JSON holds, or the message would exceed 1 MiB.
    """
    message = _text(batch).encode()
    return message if secret is None else bytes(encrypt([message], secret, _name(topic))[0])


class _TooBigError(ConfigurationError):
    """No broker is asked to carry that."""


def check_metadata(metadata: Any) -> int:
    """Raise a `ConfigurationError` unless metadata are what an event can carry; how many bytes they are."""
    if metadata == {}:
        return 0
    if not isinstance(metadata, Mapping) or not all(isinstance(name, str) for name in metadata):
        raise ConfigurationError(
            f"an item's metadata cannot be sent: {metadata!r}",
            remedy='Metadata are a dict whose keys are texts, for example {"frame": 7}.',
        )
    size = len(_text([Event("", "", 0, "", False, metadata)]))
    if size > _LIMIT - _ROOM:
        raise _too_big(f"metadata of {size} bytes are")
    return size


def _name(topic: str) -> str:
    return f"topic {topic}"


def _text(batch: Sequence[Event] | End) -> str:
    if isinstance(batch, End):
        return json.dumps([_VERSION, None, sorted(batch.producers)])
    events = [[event.key, event.size, event.kind, event.evict, dict(event.metadata)] for event in batch]
    try:
        text = json.dumps([_VERSION, batch[0].recipe, events], separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"an item's metadata cannot be sent: {error}",
            remedy="Metadata are numbers, texts, lists and dicts; send anything else as the object.",
        ) from error
    if len(text) > _LIMIT:
        raise _too_big(f"an event of {len(text)} bytes is")
    return text


def _too_big(what: str) -> ConfigurationError:
    return _TooBigError(
        f"{what} too big for a broker: {_LIMIT - _ROOM} bytes of metadata fit into a message",
        remedy="Send what is large in the object. An aggregator's items add up: make batch_size= smaller.",
    )


def decode(message: bytes, topic: str = "", secret: Secret | None = None) -> list[Event] | End:
    """The inverse of `encode`.

    Raises:
        RefusedError: it is not encrypted, or not with a secret of this process, which has one.
        CorruptError: the message is none of a stream.
    """
    if secret is not None and len(message) <= 2 * _LIMIT:
        message = bytes(decrypt(message, secret, _name(topic)))
    try:
        if len(message) > _LIMIT:
            raise ValueError(f"{len(message)} bytes")
        version, recipe, rest = json.loads(message)
        if version != _VERSION:
            raise ValueError(f"version {version!r}")
        if recipe is None:
            if type(rest) is not list or not all(type(name) is str for name in rest):
                raise ValueError("no producers")
            return End(frozenset(rest))
        events = []
        for key, size, kind, evict, metadata in rest:
            event = Event(key, recipe, size, kind, evict, metadata)
            fields = (key, recipe, size, kind, evict, metadata)
            if tuple(map(type, fields)) != (str, str, int, str, bool, dict):
                raise ValueError(f"fields of other types: {event!r}")
            events.append(event)
        return events
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptError(
            f"a message of the broker is none of a stream ({error}): {bytes(message[:40])!r}",
            remedy="Does something else write to this topic, or another version of this library?",
        ) from error
