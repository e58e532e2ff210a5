"""What librdkafka says, as this package's errors."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaError

from proxystore_core.errors import (
    ConfigurationError,
    DeadlineError,
    FullError,
    RefusedError,
    StoreError,
    UnreachableError,
)

__all__ = ["ENDS", "STALE", "failure", "is_gone", "is_refusal"]

ENDS = {KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
"""Codes of a place outside of what a log has."""

_GONE = ENDS | {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}
STALE = {
    KafkaError.UNKNOWN_PRODUCER_ID,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._MSG_TIMED_OUT,
}
"""Codes after which another producer begins anew: brokers may have forgotten this one, or the topic."""

_REFUSED = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.POLICY_VIOLATION,
}
_UNTRUSTED = "certificate verify failed"
_NOBODY = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._SSL,
    KafkaError.BROKER_NOT_AVAILABLE,
}
_LATE = {
    KafkaError._TIMED_OUT,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError.REQUEST_TIMED_OUT,
}
_TOO_LARGE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}
_WRONG = {KafkaError._INVALID_ARG, KafkaError.TOPIC_EXCEPTION, KafkaError.INVALID_CONFIG}


def is_gone(error: Any) -> bool:
    """Whether it says that there is nothing (any more) at that place of the log."""
    return error.code() in _GONE


def is_refusal(error: Any) -> bool:
    """Whether one side does not trust the other; None is no error. Who dies meanwhile refuses nobody."""
    if error is None or "Local: " in error.str():
        return False
    return error.code() in _REFUSED or _UNTRUSTED in error.str().lower()


def failure(error: Any, connection: Any, url: str, protocol: str) -> StoreError:
    """The typed error of a failed operation.

    Args:
        error: a ``KafkaError``.
        connection: the last one that a client had with its connections, or None: why time ran out.
        url: the store's.
        protocol: of the connections.
    """
    if connection is not None and (
        error.code() in _LATE or (error.code() in _NOBODY and is_refusal(connection))
    ):
        error = connection
    code, text = error.code(), f"Kafka says: {error.str()}"
    if code in _REFUSED or "SASL" in text:
        remedy = "Set PROXYSTORE_KAFKA_PASSWORD, and see ?protocol=, ?mechanism= and the user's rights."
        return RefusedError(text, store=url, remedy=f"{remedy} (docs/kafka.md)")
    if _UNTRUSTED in text.lower():
        return RefusedError(text, store=url, remedy="Name the authority's certificate with ?ca=.")
    if code in _NOBODY:
        tls = "Does this port speak TLS?" if "ssl" in protocol else "If the port speaks TLS: ?protocol=ssl."
        remedy = f"Check host and port, and that a broker runs and is reachable from this host. {tls}"
        return UnreachableError(text, store=url, remedy=remedy)
    if code in _LATE:
        remedy = "Look at the brokers' load and the network, or name a longer ?deadline= (seconds)."
        return DeadlineError(text, store=url, remedy=remedy)
    if code in _TOO_LARGE:
        remedy = "Name a smaller ?part= (bytes), or raise the brokers' message.max.bytes."
        return ConfigurationError(text, store=url, remedy=remedy)
    if code == KafkaError.KAFKA_STORAGE_ERROR or code == KafkaError._QUEUE_FULL:
        return FullError(text, store=url, remedy="Make room on the brokers' disks, or see their logs.")
    if code in _WRONG:
        return ConfigurationError(text, store=url, remedy="Check topic, options and the file of properties.")
    return StoreError(text, store=url, remedy="See the brokers' logs.")
