"""Settings: keyword arguments, the environment, ``proxystore.toml`` or ``[tool.proxystore]``, defaults.

The first one found wins, setting by setting; ``docs/settings.md`` is written for users.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import msgspec

from proxystore_core.configuration import CONFIG, boolean, settings_file
from proxystore_core.errors import ConfigurationError
from proxystore_core.secret import FILE_VARIABLE, VARIABLE, Secret, sources_of
from proxystore_core.urls import without_password
from proxystore_integrations.stores import STORES, completed, completed_tables
from proxystore_integrations.units import format_size, parse_duration, parse_size

__all__ = [
    "NAMES",
    "NOT_SETTINGS",
    "Settings",
    "check_spelling",
    "format_size",
    "parse_duration",
    "parse_size",
]

PREFIX = "PROXYSTORE_"

NOT_SETTINGS = frozenset(
    {
        CONFIG,
        "PROXYSTORE_DEBUG",
        "PROXYSTORE_KAFKA_CONFIG",
        "PROXYSTORE_KAFKA_PASSWORD",
        "PROXYSTORE_NODE_ADDRESS",
        "PROXYSTORE_NODE_SECRET",
        "PROXYSTORE_PROGRESS",
        "PROXYSTORE_REDIS_PASSWORD",
        "PROXYSTORE_RUN",
        "PROXYSTORE_SFTP_PASSWORD",
        FILE_VARIABLE,
        VARIABLE,
        # ProxyStore's own, which may be installed beside this.
        "PROXYSTORE_GLOBUS_CLIENT_ID",
        "PROXYSTORE_GLOBUS_CLIENT_SECRET",
        "PROXYSTORE_GLOBUS_ENDPOINT",
        "PROXYSTORE_ENDPOINT",
        "PROXYSTORE_ENDPOINTS",
        "PROXYSTORE_ENDPOINT_SECRET",
        "PROXYSTORE_HOME",
    }
)
"""Environment variables with our prefix that are no setting."""

AUTO = "auto"
"""A threshold that is looked up."""

_CHOICES: dict[str, Any] = {
    "inputs": Literal["value", "proxy"],
    "results": Literal["auto", "always", "never"],
    "on_store_error": Literal["fallback", "raise"],
}


class Settings(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What a client was told, checked. `load` looks everywhere; the constructor takes its arguments only.

    Attributes:
        threshold: size from which a value is proxied, bytes. It may be given as ``"auto"``: what
            ``proxystore tune`` measured on this machine, else the default.
        store: URL of the store.
        inputs: what a task gets for an argument that was proxied: the object, or a lazy proxy.
        results: which results over the threshold are proxied.
        on_store_error: pass by value and warn once, or raise.
        lease: seconds after which what a dead session stored is dropped.
        secret: where this process finds the secret that stored objects are encrypted with: pairs of ``"env"``
            or ``"file"`` and a name, never the secret; given as ``{"env": "NAME"}`` or a list of such.
        allow_pickle: whether what comes from the store may be a pickle.
        origins: where each setting that is no default came from.
        automatic: whether the threshold was given as ``"auto"``.

    A pickle of them has the URL without its password: each process takes that from its own environment.

    Raises:
        ConfigurationError: a wrong value.
        MissingExtraError: the store's library is not installed.
    """

    threshold: int = 100_000
    store: str = "shm://"
    inputs: Literal["value", "proxy"] = "value"
    results: Literal["auto", "always", "never"] = "auto"
    on_store_error: Literal["fallback", "raise"] = "fallback"
    lease: float = 600.0
    secret: tuple[tuple[str, str], ...] = ()
    allow_pickle: bool = True
    origins: Mapping[str, str] = {}
    automatic: bool = False

    def __post_init__(self) -> None:
        for name in reversed(NAMES):  # the store before the threshold, which may be its own
            value = _checked(name, getattr(self, name), self.origin(name))
            if value == AUTO and name == "threshold":
                msgspec.structs.force_setattr(self, "automatic", True)
                value = self._tuned()
            msgspec.structs.force_setattr(self, name, value)

    def _tuned(self) -> int:
        from proxystore_integrations import tuned

        found = tuned.threshold_for(self.store)
        if found is not None:
            return found
        rest = {name: origin for name, origin in self.origins.items() if name != "threshold"}
        msgspec.structs.force_setattr(self, "origins", rest)  # an engine may have a default of its own
        return int(_DEFAULTS["threshold"])

    def for_engine(self, engine: str, store: str) -> Settings:
        """These settings with what was measured with this very engine, where the threshold is ``"auto"``.

        Args:
            engine: its name, as ``proxystore tune --engine`` has it.
            store: URL of the store that is used.
        """
        if not self.automatic:
            return self
        from proxystore_integrations import tuned

        found = tuned.threshold_for(store, engine)
        return self if found is None else msgspec.structs.replace(self, threshold=found)

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the store's password: a worker has its own (PROXYSTORE_STORE, PROXYSTORE_REDIS_PASSWORD).
        told = {name: getattr(self, name) for name in Settings.__struct_fields__}
        return _unpickled, ({**told, "store": without_password(self.store)},)

    def __deepcopy__(self, memo: dict[int, Any]) -> Settings:
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Settings):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        pairs = zip(NAMES, self._values(), strict=True)
        return f"Settings({', '.join(f'{name}={_shown(name, value)}' for name, value in pairs)})"

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in NAMES)

    def origin(self, name: str) -> str:
        """Where a setting came from: a file's path, a variable's name, ``keyword argument`` or ``default``.

        Raises:
            ConfigurationError: no such setting.
        """
        _known(name, "Settings.origin")
        given = "default" if getattr(self, name) == _DEFAULTS[name] else "keyword argument"
        return self.origins.get(name, given)

    @classmethod
    def load(cls, engine: tuple[str, Mapping[str, Any]] | None = None, /, **overrides: Any) -> Settings:
        """Settings for one client: for each setting the first of

        1. a keyword argument that is not None,
        2. an environment variable that is not empty: ``PROXYSTORE_THRESHOLD``, ``PROXYSTORE_STORE`` ...,
        3. the engine's own configuration, where it has one and it names the setting,
        4. one file: the one that ``PROXYSTORE_CONFIG`` names, else the nearest ``proxystore.toml`` or
           ``pyproject.toml`` with ``[tool.proxystore]`` from the working directory upwards,
        5. the default.

        A store ``multi://a,b`` may name tables ``[stores.a]`` and ``[stores.b]`` of the file or the engine's
        configuration (or of the argument ``stores``); its URL is then completed with what they say.

        Args:
            engine: what to call the engine's configuration in an error, and its settings by name.
            **overrides: settings by name. A size or duration may be text with a unit.

        Raises:
            ConfigurationError: an unknown key in any of them, or a wrong value in the one that wins.
            MissingExtraError: the store's library is not installed.
        """
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        stores: Any = {}
        for origin, table in filter(
            None, (settings_file(), engine, ("Settings.load", _stores_of(overrides)))
        ):
            for name, value in table.items():
                if name == STORES:
                    stores = completed_tables(value, origin)
                    continue
                _known(name, origin)
                values[name], origins[name] = value, origin
        if found := _secret():
            values["secret"], origins["secret"] = found
        for variable, value in _environment().items():
            name = variable.removeprefix(PREFIX).lower()
            values[name], origins[name] = value, variable
        for name, value in overrides.items():
            _known(name, "keyword arguments")
            if value is not None:
                values[name], origins[name] = value, "keyword argument"
        if isinstance(values.get("store"), str):
            values["store"] = completed(values["store"], stores, origins["store"])
        return cls(**values, origins=origins)


def _unpickled(told: dict[str, Any]) -> Settings:
    """Settings as they were, checked where they were made: a worker may lack the store's library."""
    settings = Settings()
    for name, value in told.items():
        msgspec.structs.force_setattr(settings, name, value)
    return settings


def _stores_of(overrides: dict[str, Any]) -> dict[str, Any]:
    """The argument ``stores``, taken out."""
    return {STORES: overrides.pop(STORES)} if overrides.get(STORES) is not None else {}


NAMES = tuple(name for name in Settings.__struct_fields__ if name not in ("origins", "automatic"))
"""What may be set."""

_DEFAULTS = dict(zip(Settings.__struct_fields__, Settings.__struct_defaults__, strict=True))


def check_spelling(options: Iterable[str]) -> None:
    """Check that none of an engine's own options is one of ours with a slip of the pen.

    Raises:
        ConfigurationError: one is, but for a letter or two.
    """
    for name in options:
        if near := difflib.get_close_matches(name, NAMES, 1, 0.8):
            raise ConfigurationError(f"unknown setting: {name!r}", remedy=f"Did you mean {near[0]!r}?")


def _secret() -> tuple[Any, str] | None:
    """What the environment says of the secret, and which variable."""
    for variable, source in ((VARIABLE, {"env": VARIABLE}), (FILE_VARIABLE, None)):
        if value := os.environ.get(variable):
            return source or {"file": value}, variable
    return None


def _environment() -> dict[str, str]:
    """Our variables that are set and not empty."""
    variables = [PREFIX + name.upper() for name in NAMES]
    found = {}
    for variable, value in os.environ.items():
        if variable.startswith(PREFIX) and value and variable not in NOT_SETTINGS:
            if variable not in variables:
                raise _unknown("environment variable", variable, variables, NOT_SETTINGS)
            found[variable] = value
    return found


def _known(name: str, source: str) -> None:
    if name not in NAMES:
        raise _unknown(f"setting in {source}:", name, NAMES)


def _unknown(what: str, name: str, names: Iterable[str], others: Iterable[str] = ()) -> ConfigurationError:
    """An error that guesses among all names and lists those of settings."""
    near = difflib.get_close_matches(name, {*names, *others}, 1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    names = sorted(names)
    return ConfigurationError(f"unknown {what} {name!r}", remedy=f"{hint}Known: {', '.join(names)}.")


def _checked(name: str, value: Any, origin: str) -> Any:
    """The value as the setting's type; errors say where it was found."""
    if name == "allow_pickle":
        return boolean(value, f"{origin}: {name}")
    try:
        if name == "threshold":
            return AUTO if value == AUTO else parse_size(value)
        if name == "lease":
            return _lease(value)
        if name == "store":
            return _url(value)
        if name == "secret":
            return _sources(value, origin)
        choices = get_args(_CHOICES[name])
        if value not in choices:
            raise ConfigurationError(
                f"{value!r} is no choice", remedy=f"Expected {' or '.join(map(repr, choices))}."
            )
        return value
    except ConfigurationError as error:
        problem = f"{origin}: {name} = {_shown(name, value)}: {error.problem}"
        # In place of the error, not after it: a slip of the pen is one traceback.
        raise type(error)(problem, remedy=error.remedy) from error.__cause__


def _lease(value: Any) -> float:
    seconds = parse_duration(value)
    if not seconds:
        raise ConfigurationError("a lease of 0 s would drop what is in use", remedy='Expected "10 min", say.')
    return seconds


def _url(value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(
            f"it is of type {type(value).__name__}", remedy='Expected a URL such as "shm://".'
        )
    if value != _DEFAULTS["store"]:
        from proxystore_core.recipe import check_url

        check_url(value)
    return value


def _sources(value: Any, origin: str) -> tuple[tuple[str, str], ...]:
    """Where the secret is, which is looked at, so that what is wrong with it is said at once."""
    if value == () or (isinstance(value, tuple) and all(isinstance(pair, tuple) for pair in value)):
        sources: tuple[tuple[str, str], ...] = value
    else:
        sources = sources_of(value, origin)
    if sources:
        Secret.of(sources, origin)
    return sources


def _shown(name: str, value: Any) -> str:
    if name == "secret" and not isinstance(value, tuple):
        return "..."
    if name == "store" and isinstance(value, str):
        from proxystore_core.urls import redact

        return repr(redact(value))
    return repr(value)
