"""The commands of ``proxystore``, each loaded when it is called."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Sequence
from typing import Any

import click

from proxystore_core.errors import MissingExtraError
from proxystore_core.urls import redact_all
from proxystore_integrations import __version__
from proxystore_integrations.cli.main import DEBUG

__all__ = ["COMMANDS", "Commands", "proxystore"]

COMMANDS: dict[str, tuple[str, str]] = {
    "bench": (
        "proxystore_integrations.cli.bench:bench",
        "Compare your script without and with stores.",
    ),
    "completion": (
        "proxystore_integrations.cli.completion:completion",
        "Print what a shell needs to complete these commands.",
    ),
    "doctor": (
        "proxystore_integrations.cli.doctor:doctor",
        "Check settings, engines and the store, with a remedy for each problem.",
    ),
    "gc": ("proxystore_integrations.cli.stores:gc", "Remove what dead sessions left."),
    "endpoint": (
        "proxystore_integrations.cli.endpoint:endpoint",
        "Endpoints keep objects for their host, and fetch them from each other, also through NAT.",
    ),
    "relay": (
        "proxystore_integrations.cli.relay:relay",
        "Introduce endpoints to each other; what they exchange never comes here.",
    ),
    "login": (
        "proxystore_integrations.cli.login:login",
        "Log in to a service once, for all processes of this user on this machine.",
    ),
    "ls": ("proxystore_integrations.cli.stores:ls", "List sessions in a store."),
    "top": ("proxystore_integrations.cli.stores:top", "Watch a store: sessions, objects, bytes, rates."),
    "tune": (
        "proxystore_integrations.cli.tune:tune",
        "Measure from which size on a store wins here.",
    ),
}
"""By name: ``module:command``, a `click.Command`, and what ``--help`` says of it in one line."""


class Commands(click.Group):
    """A group whose commands are loaded when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), name)
        except MissingExtraError as error:
            raise MissingExtraError(f"{cmd_name}: {error.problem}", remedy=error.remedy) from error
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a guess what was meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            if not near:
                raise
            # One of click's own, from 8.4 on, would add its own guess, among some of the commands.
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", error.ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands in one line each, without loading them."""
        lines = []
        for name in self.list_commands(ctx):
            own = self.commands.get(name)
            lines.append((name, COMMANDS[name][1] if own is None else own.get_short_help_str(80)))
        with formatter.section("Commands"):
            formatter.write_dl(lines)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """As click's, with its own errors told in its own way, and ours left to the caller."""
        try:
            return super().main(args, *rest, **options)
        except click.exceptions.Exit as error:
            return error.exit_code
        except click.Abort:
            click.echo("Aborted.", err=True)
            return 130
        except click.ClickException as error:
            error.message = redact_all(error.message)  # it may have what was typed at the wrong place
            error.show()
            return error.exit_code


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Settings come from PROXYSTORE_* variables and proxystore.toml; see `proxystore doctor`.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.version_option(__version__, prog_name="proxystore")
def proxystore(debug: bool) -> None:
    """Big task arguments and results through a store, with the script unchanged.

    \b
    Examples:
      proxystore run script.py
      proxystore run --store redis://localhost:6379 --report run.html script.py
      proxystore doctor
      proxystore gc --dry-run
    """
    if debug:
        os.environ[DEBUG] = "1"


@proxystore.command(
    "run",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.Path())
def _run(arguments: tuple[str, ...]) -> int:
    """Run a script with a store for whichever engine it uses."""
    from proxystore_integrations.cli.run import run

    return run(list(arguments))
