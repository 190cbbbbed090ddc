from pathlib import Path

from landseg.outputs.paths import OutputPaths


def test_outputs_are_named_after_the_main_one() -> None:
    outputs = OutputPaths.of(Path("a/b.c.gpkg"), picture=True, project=True)
    assert [str(path) for path in outputs.all] == [
        "a/b.c.tif.aux.xml",
        "a/b.c.qml",
        "a/b.c.tif",
        "a/b.c.png",
        "a/b.c.qgz",
        "a/b.c.gpkg",
        "a/b.c.json",
    ]
    bare = OutputPaths.of(Path("b.gpkg"))
    assert (bare.picture, bare.project) == (None, None)
