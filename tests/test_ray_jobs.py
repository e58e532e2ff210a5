"""Ray with several jobs in one cluster: whose session an object belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray_scripts
from ray_scripts import Driver, script
from waiting import until

cluster = ray_scripts.cluster
joining = ray_scripts.joining


def test_results_of_another_job_stay_rays() -> None:
    out = script(
        """
import os, subprocess, sys
sys.path.insert(0, os.environ["TESTS"])
import ray, ray_tasks as work
from proxystore_integrations.ray import init, link
options = {name: value for name, value in work.OPTIONS.items() if name != "runtime_env"}
init(**options, results="always")
GIVE = '''
import ray
@ray.remote
def give(step):
    import numpy as np
    return np.ones(100_000)
@ray.remote
def writable(array):
    return array.flags.writeable
@ray.remote
def pass_twice(step):
    import numpy as np
    array = np.ones(100_000)
    return [ray.get(writable.remote(array)) for _ in range(2)]
'''
exec(GIVE)
ours = ray.get([give.remote(step) for step in range(3)])
print("ours", [array.flags.writeable for array in ours])
address = ray.get_runtime_context().gcs_address
other = GIVE + f"ray.init(address={address!r}, configure_logging=False)" + '''
print("nested", ray.get([pass_twice.remote(step) for step in range(2)]))
theirs = ray.get([give.remote(step) for step in range(3)])
print("theirs", [array.flags.writeable for array in theirs], ray.get_runtime_context().get_job_id())
'''
del ours
print(subprocess.run([sys.executable, "-c", other], check=True, capture_output=True, text=True).stdout)
""",
    )
    assert "ours [True, True, True]" in out
    assert "theirs [False, False, False] 02000000" in out
    assert "nested [[False, False], [False, False]]" in out


def test_an_actor_of_two_jobs(tmp_path: Path, joining: dict[str, str]) -> None:
    """Each driver keeps its own session, and the actor's process one link to each."""
    text = """
import os, subprocess, sys, threading
from pathlib import Path
sys.path.insert(0, os.environ["TESTS"])
import numpy as np, ray, ray_tasks as work
from proxystore_integrations.ray import init, link

@ray.remote
class Shared(work.Counter.__ray_metadata__.modified_class):
    def threads(self):
        return sum(thread.name == "proxystore-evict" for thread in threading.enumerate())

init(**work.JOINING, namespace="n", results="always", threshold="100 kB")
if len(sys.argv) > 1:
    shared = ray.get_actor("shared")
    mine = link.current()
    session = Path(mine._store.connector.store_dir) / mine.session
    for line in sys.stdin:
        print(float(ray.get(shared.give.remote())[0] + ray.get(shared.total.remote(work.big(2)))), flush=True)
    assert link.current() is mine, "joined another job's session"
    ray.shutdown()
    print("left" if session.exists() else "gone")
    sys.exit()
shared = Shared.options(name="shared", num_cpus=0).remote(work.big(1))
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
with subprocess.Popen([sys.executable, __file__, "other"], **pipes) as other:
    for _ in range(12):
        print("here", float(ray.get(shared.total.remote(work.big(3)))))
        print("go", file=other.stdin, flush=True)
        print("there", other.stdout.readline().strip())
    print(ray.get(shared.threads.remote()), "threads")
    other.stdin.close()
    print(other.stdout.readline().strip())
print("here", float(ray.get(shared.give.remote())[0]))
"""
    (tmp_path / "driver.py").write_text(text)
    out = script(
        f"import runpy; runpy.run_path({str(tmp_path / 'driver.py')!r}, run_name='__main__')",
        **joining,
    )
    once = ["here 120000.0", "there 90001.0"]
    assert out.splitlines() == [*once * 12, "2 threads", "gone", "here 1.0"]


STORE = 'results="always", threshold="100 kB"'
PUBLIC = f'{STORE}, namespace="public"'


class Jobs:
    """Drivers in one cluster."""

    def __init__(self, joining: dict[str, str]) -> None:
        self.joining = joining
        self.all: list[Driver] = []

    def __call__(self, options: str = PUBLIC, *, start: str = "init") -> Driver:
        """One more."""
        self.all.append(Driver(f"{start}(**work.JOINING, {options})", **self.joining))
        return self.all[-1]

    def two(self) -> Iterator[Driver]:
        """They start side by side."""
        with ThreadPoolExecutor(2) as pool:
            return pool.map(lambda _: self(), range(2))


@pytest.fixture
def jobs(cluster: Driver, joining: dict[str, str]) -> Iterator[Jobs]:
    made = Jobs(joining)
    yield made
    for driver in reversed(made.all):
        driver.end()
    until(lambda: not cluster("work.kill_named()"))


def share(first: Driver, second: Driver, options: str = 'name="shared"', kind: str = "Counter") -> None:
    """One actor of the first job for both."""
    made = "" if kind == "AsyncCounter" else "work.big(1)"
    first(f"actor = work.{kind}.options({options}).remote({made})")
    first("float(ray.get(actor.add.remote(work.big(1)))[0])")
    second("actor = ray.get_actor('shared')")


STORED = "[ray.get(result, timeout=60).flags.writeable for result in results]"
"""Bare Ray gives out nothing that can be written to."""


def test_a_result_does_not_go_with_the_job_that_called_last(jobs: Jobs) -> None:
    first, second = jobs.two()
    share(first, second)
    assert second("float(ray.get(actor.total.remote(work.big(2))))") == 90_000
    first("results = [actor.give.remote(), actor.add.remote(work.big(1))]")
    assert not first("ray.wait(results, num_returns=2, timeout=60)[1]")
    second.end()
    assert first(STORED) == [False, True]  # a call with a stored argument tells whose result it is


@pytest.mark.parametrize("how", ["", ', lifetime="detached"'])
def test_a_result_outlives_the_job_whose_actor_made_it(how: str, jobs: Jobs) -> None:
    first, second = jobs.two()
    share(first, second, f'name="shared"{how}')
    second("results = [actor.give.remote(), actor.add.remote(work.big(1)), *ray.get(actor.puts.remote())]")
    assert not second("ray.wait(results, num_returns=3, timeout=60)[1]")
    first.end()
    if not how:
        second("del results[-1]")  # bare Ray loses it with the actor
    assert second(STORED) == [False, True, False][: 3 if how else 2]


def test_what_a_detached_actor_passes_on_outlives_its_job(jobs: Jobs) -> None:
    first, second = jobs.two()
    first("go = work.Gate.options(name='go', lifetime='detached', num_cpus=0).remote()")
    share(first, second, 'name="shared", lifetime="detached", num_cpus=0')
    second("result = actor.pass_on.remote(ray.get_actor('go'))")
    first.end()
    second("opened = ray.get_actor('go').open.remote()")
    assert second("float(ray.get(result, timeout=60))") == 30_000


def test_a_shared_actor_of_a_job_without_a_store(jobs: Jobs) -> None:
    first, second = jobs("namespace='public'", start="ray.init"), jobs()
    share(first, second)
    second("results = [actor.give.remote(), actor.add.remote(work.big(1))]")
    assert second(STORED) == [False, True]
    first("results = [actor.give.remote(), actor.add.remote(work.big(1)), *ray.get(actor.puts.remote())]")
    assert first(STORED) == [False] * 3
    assert first("ray.get(actor.nested.remote())") == [False, False]


def test_a_shared_async_actor_leaves_results_to_ray(jobs: Jobs) -> None:
    first, second = jobs.two()
    share(first, second, kind="AsyncCounter")
    for job in (first, second):
        job("results = [actor.add.remote(work.big(1)) for _ in range(5)]")
        assert job(STORED) == [False] * 5


def test_an_actor_that_no_other_job_can_find_stores_its_results(jobs: Jobs) -> None:
    only = jobs(STORE)
    only("actors = [work.Counter.remote(work.big(1))]")
    only("actors += [work.Counter.options(name='mine').remote(work.big(1))]")
    only("actors += [work.Counter.options(name='public', namespace='n').remote(work.big(1))]")
    only("results = [actor.give.remote() for actor in actors]")
    assert only(STORED) == [True, True, False]


def test_an_actor_that_is_detached_by_default_gets_its_arguments_from_ray(jobs: Jobs) -> None:
    detached = "ray.job_config.JobConfig(default_actor_lifetime='detached')"
    only = jobs(f"{STORE}, job_config={detached}")
    only("made = work.Counter.options")
    only("actors = [made(lifetime=how).remote(work.big(1)) for how in (None, 'non_detached')]")
    assert only("float(ray.get(actors[1].change.remote()))") == 2
    assert "read-only" in only("str(work.failure(actors[0].change.remote()))")


def test_what_a_worker_puts_when_its_driver_ends_goes_with_the_session(jobs: Jobs, tmp_path: Path) -> None:
    only = jobs()
    session = Path(only("str(link.current()._store.connector.store_dir)")) / only("link.current().session")
    only(f"late = work.Late.remote(); result = late.give.remote({str(tmp_path / 'started')!r})")
    until((tmp_path / "started").exists)
    assert session.exists()
    only.end()
    assert not session.exists()
