"""Connectors of the tests of Margo, on the fake of it, in a module that other processes can import."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from afar import AsFromAfar

FAKE = str(Path(__file__).parent / "margo_fake")
try:
    import mochi.margo  # noqa: F401  the real one, if there is one
except ImportError:
    sys.path.append(FAKE)
    # The node server is another process.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), FAKE]))

from proxystore_core.connectors.margo import MargoConnector


class FarMargo(AsFromAfar, MargoConnector):  # type: ignore[misc]
    """A node that is far from itself."""
