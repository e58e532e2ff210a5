"""Globus Compute: the SDK's executor and this project's, on a real endpoint engine behind a fake service.

What the internet costs is not in these figures: the service is on this machine (see tests/globus_fakes.py).
"""

from __future__ import annotations

import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contenders import COMPUTE, OURS, attempt
from benchmarks.rows import Plan, Row
from benchmarks.tasks import fresh, make, nothing, touch
from benchmarks.timing import Absent, Figures, Sample, interleave

__all__ = ["WORKS"]

HUNDRED_MB = 100_000_000


def _services(stack: ExitStack) -> Mapping[str, Any]:
    """A service and an executor for each contender."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from globus_compute_sdk import Executor as SdkExecutor
    from globus_fakes import FakeService, process_pool

    from proxystore_integrations.globus_compute import Executor

    opened = {}
    for name, kind in ((COMPUTE, SdkExecutor), (OURS, partial(Executor, store="shm://", threshold="100 kB"))):
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-")))
        service = stack.enter_context(FakeService(process_pool(), directory))
        executor = kind(service.endpoint_id, service.client(), task_group_id=uuid.uuid4())
        executor.api_burst_limit = 1  # which is none
        opened[name] = service, stack.enter_context(executor)
        for _ in range(4):
            executor.submit(nothing, fresh(200_000)).result()
    return opened


def _argument(service: Any, executor: Any, *, size: int) -> Sample:
    def sample() -> Figures:
        array = fresh(size)
        expected = touch(array)
        service.batches.clear()
        begin = time.perf_counter()
        total = executor.submit(touch, array).result()
        elapsed = time.perf_counter() - begin
        assert total == expected, "another result"
        payloads = [
            item for _, batch in service.batches for tasks in batch["tasks"].values() for item in tasks
        ]
        return {"seconds": elapsed, "payload": float(sum(map(len, payloads)))}

    return sample


def _result(service: Any, executor: Any, *, size: int) -> Sample:
    def sample() -> Figures:
        begin = time.perf_counter()
        total = touch(executor.submit(make, size, 7).result())
        elapsed = time.perf_counter() - begin
        assert total == 7 * -(-size // 4096), "another result"
        return {"seconds": elapsed}

    return sample


def globus_compute(plan: Plan) -> Iterator[Row]:
    """Arguments and results; what is above a limit of the service ends the bare executor."""
    for size, rounds in plan.sized():
        if size > HUNDRED_MB:
            continue
        outcomes = []
        for build in (_argument, _result):
            with ExitStack() as stack:
                opened = attempt(partial(_services, stack))
                if isinstance(opened, Absent):
                    print(f"      no Globus Compute: {opened.reason}", file=sys.stderr)
                    return
                samples = {name: build(*where, size=size) for name, where in opened.items()}
                outcomes.append(interleave(samples, rounds))
        sent, back = outcomes
        yield Row("Globus Compute: argument", "s", sent.of("seconds"), size)
        payload = Row("Globus Compute: payload of an argument", "B", sent.of("payload"), size)
        if size == HUNDRED_MB:
            payload.at_most(OURS, 1000)
        yield payload
        yield Row("Globus Compute: result", "s", back.of("seconds"), size)


WORKS: Mapping[str, Callable[[Plan], Iterator[Row]]] = {"globus-compute": globus_compute}
