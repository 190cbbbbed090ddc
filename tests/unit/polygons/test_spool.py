from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landseg.polygons.assemble import Rings
from landseg.polygons.spool import Run, Spool

WORDS = 10


def span(run: Run) -> tuple[int, int]:
    return run.first, run.first + len(run.sizes)


def record(face: int, size: int) -> list[int]:
    return [100 * face + k for k in range(size)]


@given(sizes=st.lists(st.integers(1, 14), min_size=1, max_size=12), data=st.data())
def test_faces_come_in_order_in_the_same_runs_whenever_they_were_written(
    sizes: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    faces = range(1, len(sizes) + 1)
    order = data.draw(st.permutations(faces))
    writes = data.draw(
        st.lists(st.integers(0, len(order)), max_size=3).map(lambda cuts: [0, *sorted(cuts), len(order)])
    )
    early = []
    folder = tmp_path_factory.mktemp("spool")

    def runs(spool: Spool, *, rest: bool = False) -> list[tuple[tuple[int, int], list[int]]]:
        return [(span(run), spool.read(run).words.tolist()) for run in spool.batches(WORDS, rest=rest)]

    with Spool(folder / "early") as spool, Spool(folder / "late") as patient:
        for first, stop in pairwise(writes):
            written = sorted(order[first:stop])
            words = [record(face, sizes[face - 1]) for face in written]
            offsets = np.cumsum([0, *map(len, words)])
            rings = Rings(np.array(written, np.int32), offsets, np.array(list(chain(*words)), np.int32))
            patient.write(rings)
            spool.write(rings)
            early += runs(spool)
        early += runs(spool, rest=True)
        late = runs(patient, rest=True)

    assert early == late
    assert list(chain(*(words for _, words in early))) == [
        word for face in faces for word in record(face, sizes[face - 1])
    ]
    assert all(len(words) <= WORDS or stop == first + 1 for (first, stop), words in early)


def test_a_run_is_given_as_soon_as_it_is_whole(tmp_path: Path) -> None:
    def of(face: int) -> Rings:
        return Rings(np.array([face], np.int32), np.array([0, 6]), np.array(record(face, 6), np.int32))

    with Spool(tmp_path / "faces") as spool:
        spool.write(of(2))
        assert list(map(span, spool.batches(WORDS))) == []
        spool.write(of(1))
        assert list(map(span, spool.batches(WORDS))) == [(1, 2)]
        spool.write(of(3))
        assert list(map(span, spool.batches(WORDS))) == [(2, 3)]
        assert list(map(span, spool.batches(WORDS, rest=True))) == [(3, 4)]
    assert not any(tmp_path.iterdir())
