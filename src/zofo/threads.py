"""Independent jobs on the CPU, in as many threads as torch has, one core per job."""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch

_MOST = 8  # threads: each holds a few MiB, and beyond this memory is the bottleneck


def run_jobs(jobs: Sequence[Callable[[], object]]) -> None:
    """Run all jobs, in any order, without gradients.

    For short operations, a core that runs its own jobs is faster than several cores that share each operation, since
    data stay in its cache.

    Raises:
        BaseException: from a job, or an interrupt. By then no job is running.
    """
    threads = min(torch.get_num_threads(), _MOST)
    if threads == 1 or len(jobs) == 1:
        for job in jobs:
            job()
        return
    waiting = iter(jobs)

    @torch.no_grad()
    def work() -> None:
        for job in waiting:
            job()

    working = [_pool(threads, os.getpid()).submit(work) for _ in range(min(threads, len(jobs)))]
    try:
        wait(working, return_when=FIRST_EXCEPTION)
    finally:  # after an error, or an interrupt, no other job begins
        deque(waiting, maxlen=0)
        wait(working)
    for one in working:
        one.result()


@functools.lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads in each of which torch uses one core; a forked process does not inherit those of its parent."""
    all_begun, before = threading.Barrier(threads), torch.get_num_threads()

    def begin() -> None:
        torch.get_num_threads()  # torch asks once in each thread how many it has
        torch.set_num_threads(1)
        all_begun.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="zofo")
    try:
        wait([pool.submit(begin) for _ in range(threads)])
    finally:
        torch.set_num_threads(before)  # in threads that begin later
    return pool
