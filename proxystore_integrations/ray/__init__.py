"""Ray: large arguments of tasks and actors go through a store; results stay in plasma unless told.

from proxystore_integrations.ray import init

init()     # was: ray.init()

`instrument` is for a Ray that runs already. With ``RAY_RUNTIME_ENV_HOOK`` set to
``proxystore_integrations.ray.runtime_env_hook`` no line of the script changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxystore_integrations.lazily import lazily

if TYPE_CHECKING:
    from proxystore_integrations.ray.start import init, instrument, runtime_env_hook, worker_setup

__all__ = ["init", "instrument", "runtime_env_hook", "worker_setup"]

# Every process of Ray's loads this package under `proxystore run`; few of them need more of it.
__getattr__ = lazily(__name__, dict.fromkeys(__all__, f"{__name__}.start"))
