"""``proxystore login``: log in once to what asks for it, for all processes of this user to come."""

from __future__ import annotations

import click

from proxystore_core.errors import MissingExtraError

__all__ = ["login"]


@click.group(no_args_is_help=True)
def login() -> None:
    """Log in to a service once, for all processes of this user on this machine.

    \b
    Examples:
      proxystore login globus --client-id 12345678-9abc-def0-1234-56789abcdef0
      proxystore login globus --collection 6c54cade-bde5-45c1-bdea-f4bd71dba2cc
      proxystore login globus --logout
    """


@login.command("globus")
@click.option("--client-id", help="Your app's id (app.globus.org/settings/developers); remembered.")
@click.option(
    "--collection",
    "collections",
    multiple=True,
    help="Mapped collection that needs a consent; repeatable.",
)
@click.option("--force", is_flag=True, help="Log in again, also where there is a login.")
@click.option("--logout", is_flag=True, help="Revoke and forget the login.")
def _globus(client_id: str | None, collections: tuple[str, ...], force: bool, logout: bool) -> None:
    """Log in to Globus for globus:// stores.

    A service account needs no login: set PROXYSTORE_GLOBUS_CLIENT_ID and PROXYSTORE_GLOBUS_CLIENT_SECRET.

    \b
    Examples:
      proxystore login globus --client-id 12345678-9abc-def0-1234-56789abcdef0
      proxystore login globus --collection 6c54cade-bde5-45c1-bdea-f4bd71dba2cc
    """
    try:
        from proxystore_core.connectors import globus_login
    except ImportError as error:
        raise MissingExtraError(
            f"globus:// needs {error.name}, which is not installed",
            remedy='Run: pip install "proxystore-integrations[globus]".',
        ) from error
    if logout:
        globus_login.log_out()
        click.echo("Logged out of Globus.")
    elif globus_login.log_in(client_id, collections, force=force or bool(collections)):
        click.echo("Logged in to Globus.")
    else:
        click.echo("There is a valid login at Globus already; --force logs in again.")
