"""The tree and the exit codes are what `landseg.errors` draws, and what the command line promises."""

import re

import pytest

import landseg.errors
from landseg.errors import LandsegError


def every_error() -> list[type[LandsegError]]:
    found = [LandsegError]
    for kind in found:
        found += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == "landseg.errors"]


def drawn_tree() -> dict[str, tuple[str, int]]:
    """Read the drawing: name -> (parent's name, exit code)."""
    ancestors: dict[int, tuple[str, int]] = {0: ("LandsegError", 1)}
    drawn = {}
    for line in (landseg.errors.__doc__ or "").splitlines():
        found = re.match(r"(    )([│ ]*)[├└]── (\w+)(?: \((\d+)\))?", line)
        if found:
            depth = len(found[2]) // 4 + 1
            parent, inherited = ancestors[depth - 1]
            ancestors[depth] = found[3], int(found[4] or inherited)
            drawn[found[3]] = parent, ancestors[depth][1]
    return drawn


def test_tree_is_as_drawn() -> None:
    defined = {k.__name__: (k.__bases__[0].__name__, k.exit_code) for k in every_error() if k is not LandsegError}

    assert defined == drawn_tree()


def test_exit_codes_are_those_promised() -> None:
    first_level = {kind.exit_code for kind in LandsegError.__subclasses__()}

    assert first_level == {2, 3, 4, 5, 130}
    assert LandsegError.exit_code == 1


def test_message_is_one_line_without_a_hint() -> None:
    assert str(LandsegError("there is no scene a.tif")) == "there is no scene a.tif"


def test_hint_stands_on_a_second_line() -> None:
    error = LandsegError("there is no model 'x'", "shipped models: y")

    assert str(error).splitlines() == ["there is no model 'x'", "  shipped models: y"]
    assert (error.what, error.hint) == ("there is no model 'x'", "shipped models: y")


@pytest.mark.parametrize("kind", every_error())
def test_every_error_is_explained(kind: type[LandsegError]) -> None:
    assert (kind.__doc__ or "").strip().endswith(".")
