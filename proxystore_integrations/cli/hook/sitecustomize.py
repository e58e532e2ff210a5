"""What Python runs at the start of a script under ``proxystore run``, and of its child processes.

Its directory is first on PYTHONPATH. Whatever is wrong here, the script starts: another Python, which lacks
this package, runs this file, too.
"""

from __future__ import annotations

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))


def _the_users_own() -> None:
    """Import the sitecustomize that this one hides, if there is one."""
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or os.curdir) != _here]
    sys.path_importer_cache.pop(_here, None)
    ours = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
        if ours is not None:
            sys.modules["sitecustomize"] = ours


def _instrument() -> None:
    try:
        from proxystore_integrations.instrumentation import follow
    except ImportError:
        return
    follow()


_instrument()
_the_users_own()
