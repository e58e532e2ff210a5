"""Makes the pictures of docs/run.md and docs/tools.md: each tool is run at a terminal, or draws itself.

python docs/pictures/make.py; needs the extras `all` and `dev`, and chromium for the page.
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from proxystore_core.connectors.shm import node

HERE = Path(__file__).parent
COLUMNS = 104
SCRIPT = """\
import numpy as np
from distributed import Client


def simulate(start, seed):
    return start + np.random.default_rng(seed).normal(size=start.shape).cumsum(axis=0)


def score(path, target):
    return float(np.abs(path[-1] - target).mean())


if __name__ == "__main__":
    client = Client(n_workers=2, threads_per_worker=1, dashboard_address=None)
    start = np.zeros((20_000, 30))
    target = np.ones(30)
    paths = [client.submit(simulate, start[: 20_000 >> seed % 5] + seed, seed) for seed in range(20)]
    scores = client.map(score, paths, target=target)
    ends = np.array([path[-1] for path in client.gather(paths)])
    print("best", np.argmin(client.gather(scores)), "spread", ends.std().round(2))
    client.close()
"""
POOL = """\
import numpy as np
from concurrent.futures import ProcessPoolExecutor

if __name__ == "__main__":
    frames = np.random.default_rng(0).random((20, 2_500_000))
    with ProcessPoolExecutor(2) as pool:
        for _ in range(3):
            frames = np.array(list(pool.map(np.sqrt, frames)))
    print(frames.mean().round(6))
"""
KILLED = """
import os, signal
from proxystore_core import Session, Store
store = Store.from_url("shm://pictures")
session = Session(store.connector, lease=0.2)
for _ in range(12):
    store.put(bytes(25_000_000), session=session.name)
os.kill(os.getpid(), signal.SIGKILL)
"""


def at_terminal(words: list[str], directory: Path) -> str:
    process, terminal = pty.fork()
    if not process:
        os.chdir(directory)
        os.environ.update({"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "COLORTERM": "truecolor"})
        if words[0] in ("bench", "tune"):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # their spinners
        os.execv(sys.executable, [sys.executable, "-m", "proxystore_integrations", *words])
    shown = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.waitpid(process, 0)
    os.close(terminal)
    return shown.decode().replace("\r\n", "\n")


def picture(name: str, words: list[str], directory: Path) -> None:
    """One command's terminal as SVG."""
    shown = re.sub(r"\x1b\[\?\d+[lh]|\x1b\[\d*[AKG]|\r", "", at_terminal(words, directory)).strip("\n")
    shown = shown.replace(str(directory), "~/work").replace(node(), "laptop-1f2e3d4c")
    shown = shown.replace(socket.gethostname(), "laptop")
    if words[0] == "top":  # the last look of several
        shown = shown[shown.rindex("\x1b[1mshm://") :]
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text.from_ansi(f"$ proxystore {' '.join(words)}\n" + shown), soft_wrap=False)
    console.print()
    svg = console.export_svg(title=f"proxystore {words[0]}")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # they would come from elsewhere
    (HERE / f"{name}.svg").write_text(re.sub(r"[ \t]+\n", "\n", svg))


def main() -> None:
    """Make them all."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(directory / "cache")
        (directory / "paths.py").write_text(SCRIPT)
        (directory / "proxystore.toml").write_text('threshold = "1 MB"\nlease = "5 min"\n')
        picture("run", ["run", "--report", "run.html", "paths.py"], directory)
        browser = shutil.which("chromium")
        if browser is not None:
            flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars"
            flags += " --disable-background-networking --disable-component-update --disable-sync"
            profile = [f"--user-data-dir={directory / 'profile'}", "--window-size=1000,1500"]
            shot = f"--screenshot={HERE / 'report.png'}"
            page = (directory / "run.html").as_uri()
            subprocess.run([browser, *flags.split(), *profile, shot, page], check=True, capture_output=True)
            with Image.open(HERE / "report.png") as image:
                small = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
            small.save(HERE / "report.png", optimize=True)
        picture("doctor", ["doctor"], directory)
        subprocess.run([sys.executable, "-c", KILLED], check=False)
        store = ["--store", "shm://pictures"]
        picture("top", ["top", *store, "--interval", "1", "--count", "2"], directory)
        picture("gc", ["gc", *store], directory)
        sizes = ["--sizes", "10kB,30kB,100kB,300kB,1MB,3MB,10MB"]
        picture("tune", ["tune", *sizes, "--plot", "tune.svg"], directory)
        shutil.copy(directory / "tune.svg", HERE / "crossover.svg")
        (directory / "pool.py").write_text(POOL)
        picture("bench", ["bench", "--store", "shm://", "--repeat", "5", "pool.py"], directory)


if __name__ == "__main__":
    main()
