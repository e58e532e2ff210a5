"""``proxystore tune``: from which size on a store wins, on this machine."""

from __future__ import annotations

import os

import click
import msgspec
from rich.table import Table
from rich.text import Text

from proxystore_core.errors import ConfigurationError
from proxystore_integrations import tuned
from proxystore_integrations.cli.console import console, errors
from proxystore_integrations.cli.measure import ENGINES, crossover, measure
from proxystore_integrations.cli.options import check_writable, settings_given
from proxystore_integrations.cli.plots import Line, lines
from proxystore_integrations.tuned import Point
from proxystore_integrations.units import format_size, parse_size

__all__ = ["threshold_of", "tune", "write_threshold"]

SIZES = "10kB,30kB,100kB,300kB,1MB,3MB,10MB,30MB"


@click.command(short_help="Measure from which size on a store wins here.")
@click.option(
    "--engine", default="concurrent.futures", show_default=True, help=f"One of {', '.join(ENGINES)}."
)
@click.option("--store", metavar="URL", help="The store; by default the configured one.")
@click.option("--sizes", default=SIZES, show_default=True, help="What to measure.")
@click.option("--repeat", default=7, show_default=True, help="Calls for each figure.")
@click.option("--workers", default=2, show_default=True, help="Worker processes.")
@click.option("--endpoint", metavar="UUID", help="The Globus Compute endpoint to measure at.")
@click.option("--plot", metavar="FILE.svg", help="Draw the crossover.")
@click.option("--write", is_flag=True, help="Write the threshold to proxystore.toml in this directory.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def tune(
    engine: str,
    store: str | None,
    sizes: str,
    repeat: int,
    workers: int,
    endpoint: str | None,
    plot: str | None,
    write: bool,
    as_json: bool,
) -> None:
    """Measure an engine with and without a store at several sizes, for arguments and for results.

    The engine is started here for that, with its own defaults; Globus Compute's is an endpoint of yours.
    What is found is kept for `threshold = "auto"`, per machine, store and engine.

    \b
    Examples:
      proxystore tune
      proxystore tune --engine dask --store redis://localhost:6379 --plot crossover.svg
      proxystore tune --write
    """
    url = settings_given(store=store).store
    check_writable("--plot", plot)
    check_writable("--write", "proxystore.toml" if write else None)
    bytes_ = sorted({parse_size(size) for size in sizes.split(",")})
    if repeat < 1 or workers < 1 or not all(bytes_):
        raise ConfigurationError("--repeat, --workers and all --sizes are to be positive")
    with errors().status("starting") as status:
        found = measure(
            engine,
            url,
            bytes_,
            repeat=repeat,
            workers=workers,
            endpoint=endpoint,
            progress=status.update,
        )
    if not found["arguments"]:
        raise ConfigurationError(f"{engine} takes none of these sizes", remedy="Name smaller ones: --sizes.")
    threshold = threshold_of(found)
    kept = f'kept for threshold = "auto" in {tuned.path()}'
    try:
        tuned.remember(url, engine, threshold, found)
    except OSError as error:  # what was measured is told nevertheless
        kept = f"not {kept}: {error.strerror}"
    if plot:
        with open(plot, "w", encoding="utf-8") as file:
            file.write(picture(engine, url, found))
    if as_json:
        click.echo(
            msgspec.json.encode({"engine": engine, "store": url, "threshold": threshold, "points": found})
        )
    else:
        _show(engine, url, found, threshold, kept)
    if write and threshold is not None:
        click.echo(f"written to {write_threshold(threshold)}", err=True)


def threshold_of(found: dict[str, list[Point]]) -> int | None:
    """The larger of the crossovers, which suits all ways; None where the store wins at none of one way."""
    sizes = [crossover(points) for points in found.values()]
    known = [size for size in sizes if size is not None]
    return max(known) if len(known) == len(sizes) else None


def write_threshold(threshold: int, directory: str = ".") -> str:
    """Set ``threshold`` in a directory's proxystore.toml, and leave all else there as it is.

    Args:
        threshold: bytes.
        directory: the file's.

    Returns:
        The file's path.
    """
    path = os.path.join(os.path.abspath(directory), "proxystore.toml")
    line = f'threshold = "{format_size(threshold)}"'
    rest: list[str] = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            rest = [one for one in file.read().splitlines() if one.partition("=")[0].strip() != "threshold"]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join([line, *rest]) + "\n")
    return path


def picture(engine: str, url: str, found: dict[str, list[Point]]) -> str:
    """The crossover as SVG."""
    curves = []
    for way, points in found.items():
        curves.append(Line(f"{way}, bare", [(point.size, point.bare * 1e3) for point in points]))
        curves.append(Line(f"{way}, store", [(point.size, point.stored * 1e3) for point in points]))
    threshold = threshold_of(found)
    return lines(
        f"{engine}, {url}",
        curves,
        x_label="size",
        y_label="ms a call",
        x_ticks=[(point.size, format_size(point.size)) for point in found["arguments"]],
        marks=[] if threshold is None else [(threshold, f"threshold {format_size(threshold)}")],
    )


def _show(engine: str, url: str, found: dict[str, list[Point]], threshold: int | None, kept: str) -> None:
    table = Table(title=f"{engine}, {url}: ms a call, medians", title_justify="left", box=None)
    table.add_column("size", justify="right", overflow="fold")
    for way in found:
        for name in (f"{way.removesuffix('s')}, bare", "store", "ratio"):
            table.add_column(name, justify="right", overflow="fold")
    for points in zip(*found.values(), strict=True):
        cells: list[str | Text] = [format_size(points[0].size)]
        for point in points:
            ratio = point.stored / point.bare
            style = "green" if ratio <= 1 else "red"
            cells += [f"{point.bare * 1e3:.3g}", f"{point.stored * 1e3:.3g}", Text(f"{ratio:.2f}x", style)]
        table.add_row(*cells)
    screen = console()
    screen.print(table)
    for way, measured in found.items():
        size = crossover(measured)
        text = "at no size" if size is None else f"from {format_size(size)} on"
        screen.print(f"{way}: the store is as fast or faster {text}")
    if threshold is None:
        largest = format_size(tuned.Measured(None, found).from_size or 0)
        screen.print(f"threshold: none of these sizes; measure larger ones (auto means {largest} until then)")
    else:
        screen.print(f'threshold = "{format_size(threshold)}"; {kept}')
