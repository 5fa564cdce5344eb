"""Independent pieces of work on a real cluster, some of which fail, die or hang.

What runs on the cluster is defined inside the tests: worker processes cannot import this file.
"""

import os
import signal
import time
from contextlib import suppress
from itertools import count, islice

import psutil
import pytest
import ray

from raylab.cluster.spread import AHEAD, spread
from raylab.errors import RaylabError


def test_every_job_is_done_once():
    assert sorted(spread(lambda number: 2 * number, range(50))) == list(range(0, 100, 2))
    assert list(spread(len, [])) == []


def test_an_interrupt_that_ray_swallows_is_not_lost(monkeypatch):
    wait = ray.wait

    def deaf(*given, **named):
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        return wait(*given, **named)

    monkeypatch.setattr(ray, "wait", deaf)
    done = []
    with pytest.raises(KeyboardInterrupt):
        done.extend(spread(lambda number: number, count()))
    assert len(done) <= 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_more_jobs_are_drawn_than_keep_the_cpus_busy():
    drawn = count()
    results = spread(lambda number: number, drawn)
    assert len(list(islice(results, 5))) == 5
    results.close()
    cpus = int(ray.cluster_resources()["CPU"])
    assert 5 <= next(drawn) <= 5 + (AHEAD + 1) * cpus


def test_jobs_run_in_several_processes_each_with_one_thread():
    def place(job):
        time.sleep(0.2)
        return os.getpid(), os.environ["OMP_NUM_THREADS"]

    found = set(spread(place, range(4 * int(ray.cluster_resources()["CPU"]))))
    assert os.getpid() not in {process for process, _ in found}
    assert {threads for _, threads in found} == {"1"}
    assert len(found) > 1 or ray.cluster_resources()["CPU"] < 2


def test_a_job_whose_process_is_killed_is_run_again(tmp_path):
    def die_at_first(job):
        trace = tmp_path / str(job)
        if not trace.exists():
            trace.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return job

    assert sorted(spread(die_at_first, range(3))) == [0, 1, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "2"}


def test_a_job_that_kills_its_process_every_time_ends_with_a_message():
    with pytest.raises(RaylabError, match="lost again and again"):
        list(spread(os._exit, [1]))


def test_a_users_error_in_a_job_arrives_as_it_was_raised():
    def refuse(job):
        raise RaylabError(f"{job}: no space left")

    with pytest.raises(RaylabError, match=r"^7: no space left$"):
        list(spread(refuse, [7]))


def test_any_other_error_keeps_its_type_and_where_it_was_raised():
    def inverse(number):
        return 1 / number

    with pytest.raises(ZeroDivisionError, match="in inverse"):
        list(spread(inverse, [0]))


def test_jobs_still_running_end_with_the_first_error(tmp_path):
    def wait_or_fail(job):
        if job == 0:
            deadline = time.monotonic() + 60
            while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
                time.sleep(0.01)
            raise RaylabError("enough")
        (tmp_path / str(os.getpid())).write_text("")
        time.sleep(600)

    if ray.cluster_resources()["CPU"] < 2:
        pytest.skip("one CPU runs one job at a time")
    with pytest.raises(RaylabError, match="enough"):
        list(spread(wait_or_fail, [0, 1]))
    (waiting,) = (int(path.name) for path in tmp_path.iterdir())
    gone = time.monotonic() + 60
    while psutil.pid_exists(waiting) and time.monotonic() < gone:
        time.sleep(0.05)
    assert not psutil.pid_exists(waiting)
