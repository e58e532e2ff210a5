"""``proxystore completion``: what a shell needs to complete these commands."""

from __future__ import annotations

import os

import click
from click.shell_completion import get_completion_class

from proxystore_core.errors import ConfigurationError

__all__ = ["completion"]

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS), required=False)
def completion(shell: str | None) -> None:
    """Print what a shell needs to complete these commands; by default the one in SHELL.

    \b
    Examples:
      eval "$(proxystore completion bash)"              # in ~/.bashrc
      eval "$(proxystore completion zsh)"               # in ~/.zshrc
      proxystore completion fish > ~/.config/fish/completions/proxystore.fish
    """
    shell = shell or os.path.basename(os.environ.get("SHELL", ""))
    kind = get_completion_class(shell)
    if kind is None:
        raise ConfigurationError(f"no completion for the shell {shell!r}", remedy="Known: bash, zsh, fish.")
    root = click.get_current_context().find_root()
    click.echo(kind(root.command, {}, "proxystore", "_PROXYSTORE_COMPLETE").source())
