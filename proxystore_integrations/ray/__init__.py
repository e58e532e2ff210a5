"""Ray: large arguments of tasks and actors go through a store; results stay in plasma unless told.

from proxystore_integrations.ray import init

init()     # was: ray.init()

`instrument` is for a Ray that runs already. With ``RAY_RUNTIME_ENV_HOOK`` set to
``proxystore_integrations.ray.runtime_env_hook`` no line of the script changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxystore_core.errors import MissingExtraError
from proxystore_integrations.lazily import loading

if TYPE_CHECKING:
    from proxystore_integrations.ray.start import init, instrument, runtime_env_hook, worker_setup

__all__ = ["init", "instrument", "runtime_env_hook", "worker_setup"]


# Every process of Ray's loads this package under `proxystore run`; few of them need more of it.
def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home: Any
    try:
        with loading(__name__):
            from proxystore_integrations.ray import start as home
    except MissingExtraError as error:
        try:
            from proxystore_integrations.ray import narrow as home
        except ImportError:
            raise error from None  # there is no Ray at all, or too old a one
        home.unfit(error)
    globals().update({public: getattr(home, public) for public in __all__})
    return globals()[name]
