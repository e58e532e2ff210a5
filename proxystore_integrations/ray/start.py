"""Giving a store to a Ray job: when it starts, when it runs already, or by Ray's own environment variable."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from proxystore_core import ConfigurationError, StoreError
from proxystore_core.warned import warn
from proxystore_integrations.carriers import VersionError
from proxystore_integrations.ray import engine, joining
from proxystore_integrations.ray.cluster import check_address, settings_among
from proxystore_integrations.ray.hooks import install
from proxystore_integrations.ray.instrumentation import made_by_theirs
from proxystore_integrations.ray.link import RayLink, Terms, current, joined, leave, use

__all__ = ["init", "instrument", "runtime_env_hook", "worker_setup"]

_TERMS = "_PROXYSTORE_RAY"
_THEIRS = "_PROXYSTORE_RAY_SETUP_HOOK"
_HOOK = "worker_process_setup_hook"
_SETUP = f"{__name__.rpartition('.')[0]}.worker_setup"


class _ByName(threading.local):
    """Whether this thread is in our `init`."""

    active = False


_by_name = _ByName()


def init(*args: Any, **kwargs: Any) -> Any:
    """As `ray.init`; then large arguments go through a store.

    Args:
        *args: as for `ray.init`.
        **kwargs: as for `ray.init`, and our settings: ``threshold`` (bytes or ``"100 kB"``), ``store`` (URL
            or an open `Store`), ``inputs``, ``results``, ``on_store_error``, ``lease``. Those not given come
            from the environment, ``proxystore.toml`` or the defaults.

    Returns:
        What `ray.init` returns.

    Raises:
        ConfigurationError: a setting is unknown or wrong, or the address is a Ray Client's.
        StoreError: the store cannot be opened, and the settings want that raised.
    """
    settings = settings_among(kwargs)
    check_address(args, kwargs)
    settled = RayLink.settled(**settings)
    if engine.ray.is_initialized():
        context = engine.ray.init(*args, **kwargs)  # raises, unless the user wants it ignored
        instrument(**settings)
        return context
    link = _opened(RayLink(*settled))
    job = kwargs.get("job_config")
    if link.is_open and not (job is not None and job.runtime_env):
        given = {**kwargs, "address": args[0] if args else kwargs.get("address")}
        kwargs["runtime_env"] = _equipped(kwargs.get("runtime_env"), link, given)
    _by_name.active = True
    try:
        return engine.ray.init(*args, **kwargs)
    except BaseException:
        leave()
        raise
    finally:
        _by_name.active = False
        _bequeath_no_more()


def instrument(**settings: Any) -> None:
    """Give a Ray that runs already a store; this process is its driver.

    A worker takes part from the first stored argument on that it is given.

    Args:
        **settings: as for `init`.

    Raises:
        ConfigurationError: a setting is unknown or wrong, Ray has a store and settings are given again,
            or this process is no driver.
        StoreError: the store cannot be opened, and the settings want that raised.
    """
    if not joining.connected():
        raise ConfigurationError(
            "Ray does not run in this process (or by Ray Client, or in local mode)",
            remedy="Call ray.init() first, or proxystore_integrations.ray.init() in its place.",
        )
    if joining.is_worker():
        raise ConfigurationError(
            "this process is a worker of Ray's, and no driver",
            remedy="Give the driver a store: its workers have it, too.",
        )
    if current() is not None:
        if settings:
            raise ConfigurationError(
                f"this Ray has a store already: {', '.join(settings)} cannot be set",
                remedy="Give the settings where it gets its store first.",
            )
        return
    _opened(RayLink(*RayLink.settled(**settings)))


def runtime_env_hook(runtime_env: Any) -> Any:
    """For Ray's ``RAY_RUNTIME_ENV_HOOK``: gives the job that starts a store.

    Where ``proxystore run`` has found another hook there, that one is called first.

    Args:
        runtime_env: the user's, or None.

    Returns:
        The same with what our workers need. What is wrong becomes a warning: nobody asked us by name.
    """
    runtime_env = made_by_theirs(runtime_env)
    # Ray asks again where it runs already, and where `init` has seen to all of it.
    given = _TERMS in ((runtime_env or {}).get("env_vars") or {})
    if given or _by_name.active or joining.connected():
        return runtime_env
    try:
        link = _opened(RayLink(*RayLink.settled()))
    except (ConfigurationError, StoreError) as error:
        warn(f"this Ray works without a store: {error}")
        return runtime_env
    return _equipped(runtime_env, link, joining.given_to_init()) if link.is_open else runtime_env


def worker_setup() -> None:
    """Equip a worker when it starts."""
    terms = os.environ.get(_TERMS)
    _bequeath_no_more()
    if terms:
        install()
        try:
            link = joined(Terms.read(terms))
        except VersionError as error:  # each value that is sent here will say so, too
            warn(f"this worker works without a store: {error}")
            link = None
        if link is not None:
            use(link)  # which job's this process is may not be known yet
    theirs = os.environ.get(_THEIRS)
    if theirs:
        engine.load_class(theirs)()


def _opened(link: RayLink) -> RayLink:
    """A link with a session, if the store can be opened; it is this process's from now on."""
    try:
        link.open()
    except StoreError as error:
        link.by_value.accept(error, "work")
        return link
    leave()  # of a job that did not start
    install()
    _watch_joining()
    use(link)
    return link


@functools.cache
def _watch_joining() -> None:
    # Once this process is in a cluster, that has what it needs.
    joining.on_connect(_bequeath_no_more)


def _equipped(runtime_env: Any, link: RayLink, given: Mapping[str, Any] | None) -> Any:
    """What the job is to have as its runtime environment.

    A cluster that starts now starts its workers at once, while a job with an environment of its own waits a
    second for others, and Ray notes the environment with each task. So the workers inherit what they need,
    unless the user has a setup hook: that takes the place of ours.
    """
    if (runtime_env or {}).get(_HOOK) or given is None or not joining.starts_cluster(given):
        return _merged(runtime_env, link)
    assert link.terms is not None, "the link is open"
    os.environ[engine.SETUP_HOOK] = _SETUP
    # Another job of such a cluster has workers that are equipped, too: its results stay Ray's.
    os.environ[_TERMS] = link.terms._replace(job=engine.FIRST_JOB).written()
    return runtime_env


def _bequeath_no_more() -> None:
    """Processes that this one starts from now on are no part of the job."""
    os.environ.pop(_TERMS, None)
    if os.environ.get(engine.SETUP_HOOK) == _SETUP:
        del os.environ[engine.SETUP_HOOK]


def _merged(runtime_env: Any, link: RayLink) -> dict[str, Any]:
    """A runtime environment with our setup hook in it, and theirs after ours."""
    merged = dict(runtime_env or {})
    variables = merged["env_vars"] = dict(merged.get("env_vars") or {})
    if engine.SETUP_HOOK in variables:
        return merged  # the cluster has chosen one for this job: workers join with their first argument
    assert link.terms is not None, "the link is open"
    variables[_TERMS] = link.terms.written()
    theirs = merged.get(_HOOK)
    if callable(theirs):
        merged[_HOOK] = _both(theirs)
        return merged
    if theirs:
        variables[_THEIRS] = theirs
    merged[_HOOK] = _SETUP
    return merged


def _both(theirs: Callable[[], Any]) -> Callable[[], None]:
    def setup() -> None:
        worker_setup()
        theirs()

    return setup
