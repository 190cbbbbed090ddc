from pathlib import Path

import psutil
import pytest

from landseg import machine
from landseg.machine import available_bytes


@pytest.mark.parametrize(("limit", "free"), [("3000", 2000), ("500", 0), ("max", None), (None, None)])
def test_a_container_s_limit_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, free: int | None
) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text("1000\n")
    whole = psutil.virtual_memory().total
    assert available_bytes() == free if free is not None else 10**8 < available_bytes() <= whole
