"""What a connector that is `Leased` has to do; part of `ConnectorContract`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import pytest

from proxystore_core.connectors.base import (
    LONGEST_LEASE,
    USER_SESSION,
    Connector,
    Leased,
    extend_lease,
    leased,
    session_until,
    surveyed,
)
from proxystore_core.errors import ConfigurationError, RefusedError
from proxystore_core.testing_processes import until

__all__ = ["LeasedContract"]


class LeasedContract:
    """The tests; skipped where the connector keeps no leases."""

    def open_again(self, connector: Connector) -> Connector:
        """An equal connector, as another process would have it."""
        return type(connector).from_url(connector.url)

    def raw_objects(self, connector: Connector) -> Mapping[str, bytes] | None:
        """Everything of the store (objects, unfinished ones, no leases), read behind the connector's back.

        Published objects are under their keys, anything else under any other name; None when
        there is no such view.
        """
        return None

    @pytest.fixture
    def keeper(self, connector: Connector) -> Leased:
        keeper = leased(connector)
        if keeper is None:
            pytest.skip("keeps no leases")
        return keeper

    def test_end_evicts_the_session_and_no_other(
        self, connector: Connector, keeper: Leased, session: str
    ) -> None:
        keeper.renew(session, 600)
        keeper.renew(session + "x", 600)
        keys = [connector.put([b"data"], session=session) for _ in range(3)]
        kept = [connector.put([b"kept"], session=session + "x"), connector.put([b"kept"])]
        assert keeper.end(session) == 3
        assert keeper.end(session) == 0
        assert [connector.get(key) for key in keys] == [None] * 3
        assert [connector.get(key) for key in kept] == [b"kept"] * 2
        assert session not in keeper.sessions()
        assert 590 < keeper.sessions()[session + "x"] <= 600

    def test_what_it_holds_is_told(self, connector: Connector, keeper: Leased, session: str) -> None:
        survey = surveyed(connector)
        if survey is None:
            pytest.skip("it does not tell what is in it")
        keeper.renew(session, 600)
        for _ in range(3):
            connector.put([bytes(10_000)], session=session)
        connector.put([b"mine"])
        held = survey.held()
        assert held[session].objects == 3
        assert 30_000 <= held[session].nbytes < 60_000
        assert held[USER_SESSION].objects == 1
        room = survey.room()
        assert room is None or room > 0
        keeper.end(session)
        assert session not in survey.held()

    def test_renew_extends(self, keeper: Leased, session: str) -> None:
        keeper.renew(session, 5)
        assert 0 < keeper.sessions()[session] <= 5
        keeper.renew(session, 100)
        assert 90 < keeper.sessions()[session] <= 100

    def test_an_extension_begins_nothing(
        self, connector: Connector, keeper: Leased, session: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert not extend_lease(keeper, session, 600)
        keeper.renew(session, 5)
        key = connector.put([b"data"], session=session)
        assert extend_lease(keeper, session, 600)
        assert 590 < keeper.sessions()[session] <= 600
        assert connector.get(key) == b"data"
        seen = keeper.sessions()
        keeper.end(session)
        if hasattr(keeper, "extend"):  # one that somebody still took for alive a moment ago
            monkeypatch.setattr(keeper, "sessions", lambda: dict(seen))
        assert not extend_lease(keeper, session, 600)
        monkeypatch.undo()
        assert session not in keeper.sessions()

    @pytest.mark.parametrize("seconds", [math.inf, math.nan, -math.inf, -1.0, 0.0, 1e300, "600", None, True])
    def test_leases_that_are_none(self, keeper: Leased, session: str, seconds: Any) -> None:
        with pytest.raises(ConfigurationError, match="more than 0 and at most"):
            keeper.renew(session, seconds)
        assert session not in keeper.sessions()

    def test_the_longest_lease(self, keeper: Leased, session: str) -> None:
        keeper.renew(session, LONGEST_LEASE)
        assert LONGEST_LEASE - 60 < keeper.sessions()[session] <= LONGEST_LEASE
        keeper.end(session)

    def test_sweep_ends_the_lapsed(self, connector: Connector, keeper: Leased, session: str) -> None:
        again = self.open_again(connector)
        live, other = session + "-live", leased(again)
        assert other is not None
        keeper.renew(session, 0.2)
        keeper.renew(live, 600)
        lapsed = connector.put([b"x" * 2_000_000], session=session)
        kept = [connector.put([b"kept"], session=live), connector.put([b"kept"])]
        until(lambda: keeper.sessions().get(session, -1.0) < 0)
        assert live not in other.sweep()
        assert connector.get(lapsed) is None
        assert [connector.get(key) for key in kept] == [b"kept"] * 2
        assert session not in keeper.sessions()
        assert other.sweep() == []
        again.close()

    def test_sweep_looks_again(
        self, connector: Connector, keeper: Leased, session: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A session that was renewed after somebody saw that it had lapsed."""
        keeper.renew(session, 0.2)
        key = connector.put([b"data"], session=session)
        until(lambda: keeper.sessions().get(session, -1.0) < 0)
        seen = keeper.sessions()
        if session not in seen:
            pytest.skip("the backend has ended it by itself")
        keeper.renew(session, 600)
        monkeypatch.setattr(keeper, "sessions", lambda: dict(seen))
        assert session not in keeper.sweep()
        monkeypatch.undo()
        assert connector.get(key) == b"data"
        assert keeper.sessions()[session] > 590

    def test_a_session_may_say_when_it_lapses(self, connector: Connector, keeper: Leased) -> None:
        session = session_until("test", time.time() + 0.5)
        keeper.renew(session, 0.5)
        key = connector.put([b"x" * 2_000_000], session=session)
        until(lambda: keeper.sessions().get(session, -1.0) < 0)
        keeper.sweep()
        assert connector.get(key) is None
        assert session not in keeper.sessions()

    def test_the_user_session_has_no_lease(self, connector: Connector, keeper: Leased) -> None:
        key = connector.put([b"mine"])
        with pytest.raises(RefusedError):
            keeper.renew(USER_SESSION, 0.001)
        time.sleep(0.01)
        assert keeper.sweep() == []
        assert connector.get(key) == b"mine"
        assert USER_SESSION not in keeper.sessions()

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a.b", "a b", "a\0", "ü", "x" * 65])
    def test_session_names_are_checked(self, connector: Connector, keeper: Leased, name: str) -> None:
        for use in (
            lambda: connector.put([b"data"], session=name),
            lambda: keeper.renew(name, 1),
            lambda: keeper.end(name),
        ):
            with pytest.raises(RefusedError):
                use()
        assert not self.raw_objects(connector)

    def test_what_comes_after_the_end_is_not_for_ever(
        self, connector: Connector, keeper: Leased, session: str
    ) -> None:
        keeper.renew(session, 600)
        keeper.end(session)
        key = connector.put([b"late"], session=session)
        assert session in keeper.sessions()
        assert keeper.end(session) == 1
        assert connector.get(key) is None
