"""Law 8: what is at a final path is complete: every product appears by rename, or not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landseg.outputs.drafts import Drafts

NAMES = ("map.tif.aux.xml", "map.tif", "map.png", "map.gpkg", "map.json")


class PowerCut(BaseException):
    """Stops a run where no handler expects it."""


@given(
    old=st.sets(st.sampled_from(NAMES)),
    written=st.integers(0, len(NAMES) - 1),
    published=st.none() | st.integers(0, len(NAMES)),
)
def test_whatever_stops_a_run_products_are_whole(
    tmp_path_factory: pytest.TempPathFactory, old: set[str], written: int, published: int | None
) -> None:
    """Stop after so many drafts, the last one half-written, or after so many renames."""
    folder = tmp_path_factory.mktemp("out")
    for name in old:
        (folder / name).write_text(f"old {name}")

    def stopped_run() -> None:
        with Drafts(folder / "map.gpkg") as drafts:
            for index, name in enumerate(NAMES):
                if published is None and index == written:
                    drafts.path(folder / name).write_text("ne")
                    raise PowerCut
                drafts.path(folder / name).write_text(f"new {name}")
            drafts.publish([folder / name for name in NAMES[:published]])
            raise PowerCut

    with pytest.raises(PowerCut):
        stopped_run()

    done = set() if published is None else set(NAMES[:published])
    assert {path.name for path in folder.iterdir()} == old | done
    for path in folder.iterdir():
        assert path.read_text() == f"{'new' if path.name in done else 'old'} {path.name}"
