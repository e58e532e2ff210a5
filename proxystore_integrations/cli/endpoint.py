"""``proxystore endpoint``: this host's endpoints for ``webrtc://`` stores."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from proxystore_core.endpoint.settings import (
    ENDPOINT,
    SECRET,
    EndpointSettings,
    all_directory,
    configured,
    relay_token,
)
from proxystore_core.errors import ConfigurationError, MissingExtraError, StoreError

__all__ = ["endpoint"]

_name = click.argument("name", default="default")


@click.group(no_args_is_help=True)
def endpoint() -> None:
    """Endpoints keep objects for their host, and fetch them from each other, also through NAT.

    \b
    Examples:
      proxystore endpoint configure --relay wss://relay.example.org:8765
      proxystore endpoint start
      proxystore endpoint test --to 0123456789abcdef0123456789abcdef
    """


@endpoint.command()
@_name
@click.option("--relay", help="The relay's URL: wss://host:port.")
@click.option("--relay-ca", help="Certificate of the authority that vouches for the relay, PEM.")
@click.option("--stun", help='STUN server, host:port; "relay" for the one in the relay; "" for none.')
@click.option("--address", "addresses", multiple=True, help="This host's address for peers; repeatable.")
@click.option("--spill", help="Directory for what has no room in shared memory.")
@click.option("--pages", type=int, help="Port on loopback of /health and /metrics; 0 for any, -1 for none.")
def configure(name: str, **settings: Any) -> None:
    """Make an endpoint of this host, or change its settings.

    All endpoints that belong together have the same token. Take it from one of them (proxystore endpoint
    token --secret) and set PROXYSTORE_ENDPOINT_SECRET when you configure the others.

    \b
    Examples:
      proxystore endpoint configure --relay wss://relay.example.org:8765
      PROXYSTORE_ENDPOINT_SECRET=... proxystore endpoint configure laptop --relay wss://relay.example.org:8765
    """
    given = {field: value for field, value in settings.items() if value not in (None, ())}
    made = EndpointSettings.create(name, os.environ.get(SECRET) or None, **given)
    click.echo(
        f"endpoint {made.name} has the id {made.id}; its settings are in {made.directory}/endpoint.toml"
    )
    if made.running:
        click.echo("It runs: stop and start it to let it know.")


@endpoint.command()
@_name
@click.option("--foreground", is_flag=True, help="Run it here, until it is interrupted.")
def start(name: str, foreground: bool) -> None:
    """Start an endpoint.

    \b
    Examples:
      proxystore endpoint start
      proxystore endpoint start laptop --foreground
    """
    daemon = _daemon()
    settings = EndpointSettings.load(name)
    if foreground:
        daemon.run(settings)
    else:
        click.echo(f"endpoint {settings.name} ({settings.id}) runs as process {daemon.start(settings)}")


@endpoint.command()
@_name
@click.option("--clear", is_flag=True, help="Drop all of its objects.")
def stop(name: str, clear: bool) -> None:
    """Stop an endpoint; what it keeps in this host's shared memory stays, unless it is cleared.

    \b
    Examples:
      proxystore endpoint stop
      proxystore endpoint stop laptop --clear
    """
    ran = _daemon().stop(EndpointSettings.load(name), clear=clear)
    click.echo(f"endpoint {name} {'has stopped' if ran else 'did not run'}")


@endpoint.command("list")
def _list() -> None:
    """Show this host's endpoints.

    \b
    Examples:
      proxystore endpoint list
    """
    found = configured()
    for settings in found:
        state = "running" if settings.running else "stopped"
        click.echo(f"{settings.name}\t{settings.id}\t{state}\t{settings.relay or 'no relay'}")
    if not found:
        click.echo(f"no endpoints in {all_directory()}")


@endpoint.command()
@_name
@click.option("--to", "peers", multiple=True, help="Id of another endpoint; repeatable.")
@click.option("--deadline", default=30.0, show_default=True, help="Seconds to wait for it.")
def test(name: str, peers: tuple[str, ...], deadline: float) -> None:
    """See whether an endpoint works, and reaches others.

    \b
    Examples:
      proxystore endpoint test
      proxystore endpoint test laptop --to 0123456789abcdef0123456789abcdef
    """
    _daemon()
    from proxystore_core.connectors.webrtc import EndpointConnector

    EndpointSettings.load(name)
    os.environ[ENDPOINT] = name
    connector = EndpointConnector(deadline=deadline)
    key = connector.put([b"test"])
    if connector.get(key) != b"test":
        raise StoreError("the endpoint gives other bytes than it got", key=key)
    connector.evict(key)
    health = connector.health()
    click.echo(f"endpoint {name} ({health['id']}) works; relay: {health['relay']}")
    for peer in peers:
        begin = time.perf_counter()
        connector.ping(peer)
        connected = time.perf_counter()
        connector.ping(peer)
        again = time.perf_counter() - connected
        click.echo(
            f"{peer}: connected in {connected - begin:.2f} s, a round trip takes {1000 * again:.1f} ms"
        )
    connector.close()


@endpoint.command()
@_name
@click.option("--secret", is_flag=True, help="Print the token itself, for the other endpoints of the group.")
def token(name: str, secret: bool) -> None:
    """Print what lets an endpoint's group in at a relay: a line for the relay's file of tokens.

    \b
    Examples:
      proxystore endpoint token >> groups.txt
      proxystore endpoint token --secret
    """
    found = EndpointSettings.load(name).secret()
    click.echo(found if secret else f"{name} {relay_token(found)}")


def _daemon() -> Any:
    try:
        from proxystore_core.endpoint import daemon
    except ImportError as error:
        if not error.name:
            raise ConfigurationError(str(error)) from error
        raise MissingExtraError(
            f"an endpoint needs {error.name}, which is not installed",
            remedy='Run: pip install "proxystore-integrations[webrtc]".',
        ) from error
    return daemon
