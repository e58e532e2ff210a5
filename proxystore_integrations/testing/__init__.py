"""The tests that every engine's integration passes, for ours and for others'.

    from proxystore_integrations.testing import Engine, EngineContract

    @pytest.fixture(scope="module")
    def running():
        with MyEngine() as engine:  # a subclass of Engine
            yield engine

    class TestMyEngine(EngineContract):
        @pytest.fixture
        def engine(self, running):
            return running

Needs pytest, NumPy and pandas.
"""

from __future__ import annotations

from proxystore_integrations.testing.contract import EngineContract
from proxystore_integrations.testing.engine import Engine, objects_of

__all__ = ["Engine", "EngineContract", "objects_of"]
