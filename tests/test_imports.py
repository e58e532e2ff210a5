"""What importing costs: the core loads two small libraries, and no engine is loaded unasked."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LIGHT = {"cloudpickle", "xxhash"}
# What the connectors to Redis load; redis-py takes the last four where it finds them.
REDIS = {"async_timeout", "redis", "hiredis"}  # the first on Python before 3.11.3
REDIS |= {"cryptography", "opentelemetry", "psutil", "typing_extensions"}
OBSTORE = {"obstore"}
SSH = {"OpenSSL", "_cffi_backend", "_openssl", "asyncssh", "cryptography", "ifaddr", "typing_extensions"}
AIORTC = {"_cffi_backend", "_openssl", "typing_extensions", "websockets", "OpenSSL", "aioice", "aiortc", "av"}
AIORTC |= {"__mp_main__", "cryptography", "dns", "google_crc32c", "idna", "ifaddr", "pyee", "pylibsrtp"}
# What connectors of one backend load, by the start of their modules' names.
BACKENDS = {
    "redis": REDIS,
    "keydb": REDIS,
    "kafka": {"confluent_kafka"},
    "zmq": {"cython_runtime", "zmq"},
    "objects": OBSTORE,
    "http": OBSTORE,
    "sftp": SSH,
    "webrtc": AIORTC,
    "globus": {"globus_sdk", "typing_extensions"},
}
ENGINES = {"dask", "distributed", "globus_compute_sdk", "parsl", "ray"}


def folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def core_modules() -> list[str]:
    """Every module of the core but those of `testing`, which are written for pytest, and mypy's plugin."""
    root = folder("proxystore_core")
    names = (path.relative_to(root.parent).with_suffix("").parts for path in root.rglob("*.py"))
    modules = {".".join(name[:-1] if name[-1] == "__init__" else name) for name in names}
    others = ("proxystore_core.testing", "proxystore_core.mypy_plugin")
    return sorted(module for module in modules if not module.startswith(others))


def loaded_by(statement: str) -> set[str]:
    """Third-party packages that one statement loads into a fresh interpreter."""
    loaded = "json.dumps([*sys.modules.keys() - before])"
    script = f"import json, sys; before = set(sys.modules); {statement}; print({loaded})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = {name.partition(".")[0] for name in json.loads(done.stdout)}
    names -= {name for name in names if name.startswith("_cython_")}  # named by its version
    return names - sys.stdlib_module_names - {"proxystore_core", "proxystore_integrations"}


def test_importing_the_core_loads_only_what_it_needs():
    assert loaded_by("import proxystore_core") <= LIGHT


def test_importing_every_public_name_of_the_core_loads_only_what_it_needs():
    assert loaded_by("from proxystore_core import *") <= LIGHT


@pytest.mark.parametrize("module", core_modules())
def test_no_module_of_the_core_loads_more(module):
    if module.endswith((".daos", ".margo")):
        pytest.skip("no package of pip brings its library")
    backend = module.removeprefix("proxystore_core.connectors.").removeprefix("proxystore_core.stream.")
    backend = backend.replace("proxystore_core.endpoint", "webrtc")
    also = next((packages for name, packages in BACKENDS.items() if backend.startswith(name)), set())
    if backend.startswith("ucx"):  # what ucxx itself loads is a lot, and its own
        also = loaded_by("import ucxx")
    loaded = {name for name in loaded_by(f"import {module}") if "cython" not in name}
    assert loaded <= LIGHT | also


@pytest.mark.parametrize("module", ["proxystore_integrations", "proxystore_integrations.settings"])
def test_no_engine_is_loaded_unasked(module):
    heavy = ENGINES | {"numpy", "pandas", "polars", "pyarrow"}
    assert loaded_by(f"import {module}").isdisjoint(heavy)


def private_imports(source: Path) -> Iterator[str]:
    """Core's private names that a file imports."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("proxystore_core"):
            path = f"{node.module}.{{}}"
            yield from (path.format(alias.name) for alias in node.names if alias.name.startswith("_"))


def test_engines_import_no_private_name_of_the_core():
    sources = sorted(folder("proxystore_integrations").rglob("*.py"))
    assert sources
    assert {source.name: list(private_imports(source)) for source in sources} == {
        source.name: [] for source in sources
    }


def test_a_function_is_not_hidden_by_the_module_of_its_name() -> None:
    """Python names a module in its package once somebody has imported it."""
    script = """
import proxystore_core.sizeof
from proxystore_core.sizeof import register_sizeof
from proxystore_core import sizeof
assert sizeof is proxystore_core.sizeof
assert sizeof(b"bytes") < 100
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_engine_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "distributed.py").write_text("None.broken")
    code = "from proxystore_integrations.dask import Client"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert "'NoneType' object has no attribute 'broken'" in done.stderr.splitlines()[-1]
