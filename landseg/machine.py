"""What this machine can spare, and threads that work ahead."""

import ctypes
import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TypeVar

import psutil

CGROUP = Path("/sys/fs/cgroup")
"""Where a container finds its limits, on Linux."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def cache_folder() -> Path:
    """Give the user's folder for what can be made again; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "landseg"


def available_bytes() -> int:
    """Count the main memory that is free, within the limits of the container if this is one."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        # What was read of files counts, too, though it goes when there is need of its place.
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used -= int(statistics["inactive_file"])
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))


def trim_memory() -> None:
    """Give back to the system what has been freed: glibc keeps much of it, for each thread of its own."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def cores() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Call a function in a pool and give its results in order, a few items ahead of what is asked for."""
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
