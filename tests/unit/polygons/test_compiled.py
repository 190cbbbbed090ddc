import logging

import pytest

from landseg.polygons import compiled


def test_loops_that_can_not_be_kept_are_compiled_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    compiled._tell_once.cache_clear()
    made: dict[str, object] = {}
    # Of no file, so that there is no place for its cache either.
    exec("def double(x):\n    return 2 * x\ndef triple(x):\n    return 3 * x", made)
    double, triple = (compiled.kernel(made[name]) for name in ("double", "triple"))  # type: ignore[type-var]
    assert (double(4), triple(4)) == (8, 12)  # type: ignore[operator]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
