import pytest

from landseg.legend import MAX_CLASS_ID, NODATA, LandClass, Legend

WATER = LandClass(7, "water", "#56b4e9")
LAKE = LandClass(3, "lake", "#0A0bFf", parent=7)
ROAD = LandClass(200, "road", "#000000")


def test_classes_keep_the_order_of_the_channels() -> None:
    legend = Legend((WATER, LAKE, ROAD))

    assert legend.class_ids == (7, 3, 200)
    assert legend.names == ("water", "lake", "road")
    assert list(legend) == [WATER, LAKE, ROAD]
    assert len(legend) == 3


def test_a_class_is_found_by_its_id_and_not_by_its_place() -> None:
    legend = Legend((WATER, LAKE, ROAD))

    assert legend[3] is LAKE
    with pytest.raises(KeyError):
        legend[0]


def test_legends_of_equal_classes_are_equal() -> None:
    assert Legend((WATER, LAKE)) == Legend((WATER, LandClass(3, "lake", "#0A0bFf", parent=7)))
    assert Legend((WATER, ROAD)) != Legend((ROAD, WATER))


def test_colour_is_read_as_red_green_blue() -> None:
    assert LAKE.rgb == (10, 11, 255)


@pytest.mark.parametrize("class_id", [NODATA, MAX_CLASS_ID + 1, -1])
def test_class_ids_that_mean_something_else_are_no_labels(class_id: int) -> None:
    legend = Legend((LandClass(class_id, "x", "#000000"),))
    with pytest.raises(ValueError, match=f"class id {class_id} of 'x'"):
        legend.check_labels()


@pytest.mark.parametrize("class_id", [1, MAX_CLASS_ID])
def test_outermost_class_ids_are_taken(class_id: int) -> None:
    Legend((LandClass(class_id, "x", "#000000"),)).check_labels()


@pytest.mark.parametrize("colour", ["red", "#fff", "#12345g", "#1234567", " #123456", "#123456\n"])
def test_other_forms_of_colour_are_refused(colour: str) -> None:
    with pytest.raises(ValueError, match="not of the form #rrggbb"):
        LandClass(1, "x", colour)


def test_a_blank_name_is_refused() -> None:
    with pytest.raises(ValueError, match="class 1 has no name"):
        LandClass(1, "  ", "#000000")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((), "at least one class"),
        ((WATER, LandClass(7, "sea", "#000000")), "id stands twice"),
        ((WATER, LandClass(8, "water", "#000000")), "name stands twice"),
        ((LAKE, ROAD), "parent 7 of class 'lake'"),
        ((LandClass(1, "x", "#000000", parent=1),), "parent 1 of class 'x'"),
    ],
)
def test_legends_that_contradict_themselves_are_refused(classes: tuple[LandClass, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Legend(classes)


@pytest.mark.parametrize("affinity", [{(7, 9): 1.0}, {(9, 7): 1.0}, {(7, 3): -0.5}])
def test_affinities_that_make_no_sense_are_refused(affinity: dict[tuple[int, int], float]) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        Legend((WATER, LAKE), affinity)


@pytest.mark.parametrize("name", ["a\0b", "\x1b[31mred", "a\nb", "\x9b31m", "\ud800", "\uffff"])
def test_names_hold_no_control_characters(name: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        LandClass(1, name, "#000000")


@pytest.mark.parametrize("name", ["=1+1", "NULL", "</script>", "a\u200cb", "\u0634\u0647\u0631", "\U0001f333"])
def test_names_are_otherwise_the_user_s(name: str) -> None:
    assert LandClass(1, name, "#000000").name == name
