import platform
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from landseg import machine
from landseg.machine import ahead, available_bytes, trim_memory


@pytest.mark.parametrize(("limit", "free"), [("3000", 2300), ("500", 0), ("max", None), (None, None)])
def test_a_container_s_limit_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, free: int | None
) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text("1000\n")
        # What is kept of files that were read goes when there is need of it.
        (tmp_path / "memory.stat").write_text("anon 700\ninactive_file 300\n")
    whole = psutil.virtual_memory().total
    assert available_bytes() == free if free is not None else 10**8 < available_bytes() <= whole


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give memory back by themselves")
def test_freed_memory_goes_back_to_the_system() -> None:
    resident = psutil.Process().memory_info
    blocks = [bytes(50_000) for _ in range(4000)]
    last, held = blocks.pop(), resident().rss
    del blocks  # what lies above them, the last one, keeps the heap from shrinking
    trim_memory()
    assert resident().rss < held - 150_000_000
    assert len(last) == 50_000


def test_results_come_in_order_while_the_next_items_are_worked_on() -> None:
    begun = [threading.Event() for _ in range(5)]

    def work(item: int) -> int:
        begun[item].set()
        # The first one is not through before the second is begun.
        assert begun[1].wait(10)
        return item * item

    with ThreadPoolExecutor(2) as pool:
        assert list(ahead(pool, work, range(5), workers=2)) == [0, 1, 4, 9, 16]


def test_what_goes_wrong_with_an_item_is_raised_in_its_place() -> None:
    with ThreadPoolExecutor(1) as pool:
        results = ahead(pool, lambda item: 12 // (3 - item), range(100), workers=1)
        assert [next(results) for _ in range(3)] == [4, 6, 12]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_no_more_items_are_taken_than_are_worked_on_ahead() -> None:
    taken = []

    with ThreadPoolExecutor(2) as pool:
        results = ahead(pool, str, (taken.append(item) or item for item in range(100)), workers=2)
        next(results)
        results.close()
    assert taken == [0, 1, 2]
