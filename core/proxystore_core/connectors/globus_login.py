"""Who we are to Globus: an app of globus-sdk, with its tokens in the SDK's own storage.

A user logs in once a machine (``proxystore login globus``); a service account has a client's id and
secret in the environment. No token is ever in a store's URL, its configuration or a reference.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import globus_sdk
from globus_sdk.scopes import TransferScopes

from proxystore_core.errors import ConfigurationError

__all__ = ["CLIENT_ID", "CLIENT_SECRET", "app", "client_id", "log_in", "log_out"]

CLIENT_ID = "PROXYSTORE_GLOBUS_CLIENT_ID"
CLIENT_SECRET = "PROXYSTORE_GLOBUS_CLIENT_SECRET"
_NAME = "proxystore"


def client_id() -> str:
    """The id of the app that users log in to, or of the service account.

    Raises:
        ConfigurationError: nobody said.
    """
    found = os.environ.get(CLIENT_ID)
    if not found and _remembered().exists():
        found = _remembered().read_text(encoding="ascii").strip()
    if not found:
        raise ConfigurationError(
            "no Globus client id is known",
            remedy=(
                f"Register a thick client at app.globus.org/settings/developers, then set {CLIENT_ID} "
                "or run: proxystore login globus --client-id ID."
            ),
        )
    return found


def app(*, interactive: bool = False) -> globus_sdk.GlobusApp:
    """An app of globus-sdk for this process.

    Args:
        interactive: ask a user to log in when tokens are missing. A worker must not: it has nobody to ask.

    Raises:
        ConfigurationError: no client id is known.
    """
    secret = os.environ.get(CLIENT_SECRET)
    if secret:
        return globus_sdk.ClientApp(_NAME, client_id=client_id(), client_secret=secret)
    options: dict[str, Any] = {} if interactive else {"token_validation_error_handler": None}
    config = globus_sdk.GlobusAppConfig(request_refresh_tokens=True, **options)
    return globus_sdk.UserApp(_NAME, client_id=client_id(), config=config)


def log_in(client: str | None = None, collections: Iterable[str] = (), *, force: bool = False) -> bool:
    """Log in, asking the user where one is needed, and keep the tokens for the processes to come.

    Args:
        client: id of the app, remembered for this user.
        collections: mapped collections whose data the user consents to have accessed.
        force: also when there are tokens already.

    Returns:
        Whether anything had to be done.

    Raises:
        ConfigurationError: no client id is known.
    """
    if client:
        path = _remembered()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(client + "\n", encoding="ascii")
    with app(interactive=True) as session, globus_sdk.TransferClient(app=session) as transfer:
        wanted = list(collections)
        if wanted:
            transfer.add_app_data_access_scope(wanted)
        needed = force or session.login_required()
        if needed:
            session.login(force=True)
        return needed


def log_out() -> None:
    """Revoke and forget the tokens."""
    with app() as session:
        session.add_scope_requirements({TransferScopes.resource_server: TransferScopes.all})
        session.logout()


def _remembered() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(home, "proxystore", "globus-client-id")
