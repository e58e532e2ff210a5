"""``proxystore relay``: a server that introduces endpoints to each other."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path

import click

from proxystore_core.errors import MissingExtraError

__all__ = ["relay"]

_FILE = click.Path(exists=True, dir_okay=False)


@click.command()
@click.option(
    "--tokens",
    type=click.Path(exists=True, dir_okay=False),
    required=True,
    help="Who is let in: lines GROUP DIGEST.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8765, show_default=True, help="Port, also of STUN (UDP); 0 for any.")
@click.option("--cert", type=_FILE, help="Certificate (chain), PEM.")
@click.option("--key", type=_FILE, help="Its private key, PEM.")
@click.option("--plain", is_flag=True, help="No TLS: something in front of the relay does it.")
@click.option("--no-stun", is_flag=True, help="Do not answer STUN.")
@click.option("--pages", default=-1, help="Port on loopback of /health and /metrics; 0 for any.")
@click.option("--most", default=10_000, show_default=True, help="Endpoints at a time.")
def relay(
    tokens: str,
    host: str,
    port: int,
    cert: str | None,
    key: str | None,
    plain: bool,
    no_stun: bool,
    pages: int,
    most: int,
) -> None:
    """Introduce endpoints to each other; what they exchange never comes here.

    The tokens' file has a line for each group of endpoints: what `proxystore endpoint token` prints. Its
    changes are followed: endpoints of a group that is taken out have to go.

    \b
    Examples:
      proxystore relay --tokens groups.txt
      proxystore relay --tokens groups.txt --host 0.0.0.0 --cert relay.pem --key relay.key --pages 9100
    """
    try:
        from proxystore_core.endpoint.relay import Relay, read_tokens
    except ImportError as error:
        raise MissingExtraError(
            f"a relay needs {error.name}, which is not installed",
            remedy='Run: pip install "proxystore-integrations[webrtc]".',
        ) from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("websockets").setLevel(logging.ERROR)
    server = Relay(read_tokens(Path(tokens).read_text(encoding="utf-8")), most=most)

    async def run() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        async with server.serving(
            host, port, cert=cert, key=key, plain=plain, stun=not no_stun, pages_port=pages
        ) as bound:
            scheme = "wss" if cert else "ws"
            click.echo(f"relay at {scheme}://{f'[{host}]' if ':' in host else host}:{bound}")
            following = asyncio.ensure_future(server.follow(Path(tokens)))
            await stopped.wait()
            following.cancel()

    asyncio.run(run())
