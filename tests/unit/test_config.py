from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from landseg.config import LegendConfig, RunConfig, TrainConfig, legend_of, load_config, override
from landseg.config.loading import MOST_CHARACTERS
from landseg.errors import ConfigError
from landseg.legend import LandClass

DUBAI = Path(__file__).parents[2] / "configs" / "train" / "dubai.yaml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def refusal(file: Path, text: str, kind: type[RunConfig] | type[TrainConfig] = RunConfig) -> ConfigError:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, kind)
    assert caught.value.exit_code == 2
    return caught.value


def training(**changes: Any) -> str:
    """Write a valid training's YAML, a key a line at the top level, with keys set, or left out if None."""
    keys: dict[str, Any] = {
        "name": "tiny",
        "out": "runs",
        "legend": [
            {"class_id": 1, "name": "land", "colour": "#ece2c6"},
            {"class_id": 2, "name": "water", "colour": "#56b4e9"},
        ],
        "gsd_m": 1.0,
        "data": {"training": [{"scene": "a.tif", "labels": "b.tif"}], "label_values": {3: "land", 9: "water"}},
        "optimisation": {"steps": 10},
        "card": {"title": "t", "description": "d", "licence": "MIT", "training_data": "x"},
    }
    keys.update(changes)
    return yaml.safe_dump({k: v for k, v in keys.items() if v is not None}, sort_keys=False, default_flow_style=False)


def position(text: str, line_holds: str, word: str) -> str:
    """Say where a word stands, the way the messages do."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line_holds in line:
            return f"line {number}, column {line.index(word) + 1}"
    raise LookupError(line_holds)


def test_values_come_from_the_file_and_the_rest_from_defaults(file: Path) -> None:
    file.write_text("overlap: 0.5\nbands: [3, 2, 1]\n")

    config = load_config(file, RunConfig)

    assert (config.overlap, config.bands, config.nodata_policy) == (0.5, (3, 2, 1), "all")


def test_the_command_line_comes_before_the_file(file: Path) -> None:
    file.write_text("overlap: 0.5\ndevice: cpu\nbatch: 7\n")

    config = override(load_config(file, RunConfig), {"overlap": 0.1, "device": None, "bands": (3, 2, 1)})

    assert (config.overlap, config.device, config.batch, config.bands) == (0.1, "cpu", 7, (3, 2, 1))


def test_a_senseless_option_is_named_as_on_the_command_line() -> None:
    with pytest.raises(ConfigError) as caught:
        override(RunConfig(), {"nodata_policy": "some"})

    assert caught.value.what == "--nodata-policy is 'some': input should be 'all' or 'any'"


def test_an_empty_file_means_defaults(file: Path) -> None:
    file.write_text("# nothing\n")

    assert load_config(file, RunConfig) == RunConfig()


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().overlap = 0.5  # type: ignore[misc]


def test_an_unknown_key_is_named_with_its_place_and_the_nearest_key(file: Path) -> None:
    error = refusal(file, "device: cpu\n\n  # a comment\noverlpa: 0.5\n")

    assert error.what == f"{file}, line 4, column 1: unknown key 'overlpa'"
    assert error.hint == "did you mean 'overlap'?"


def test_an_unknown_key_like_no_other_gets_the_list_of_keys(file: Path) -> None:
    error = refusal(file, "xyzzy: 1\n")

    assert error.what.endswith("unknown key 'xyzzy'")
    assert error.hint is not None
    assert error.hint.removeprefix("known keys: ").split(", ") == list(RunConfig.model_fields)


def test_an_unknown_nested_key_gets_its_own_level_s_nearest_key(file: Path) -> None:
    # 'steps' is known in optimisation alone, 'stps' is near it.
    text = training(optimisation={"steps": 10, "bacth": 4})

    error = refusal(file, text, TrainConfig)

    assert error.what == f"{file}, {position(text, 'bacth', 'bacth')}: unknown key 'optimisation.bacth'"
    assert error.hint == "did you mean 'batch'?"


def test_an_unknown_key_in_a_list_is_named_by_its_place_in_the_list(file: Path) -> None:
    text = training(
        data={"training": [{"scene": "a", "labels": "b"}, {"scene": "c", "label": "d"}], "label_values": {}}
    )
    text = text.replace("label: d", "labels: d\n    lables: e")

    error = refusal(file, text, TrainConfig)

    assert error.what == f"{file}, {position(text, 'lables', 'lables')}: unknown key 'data.training.1.lables'"
    assert error.hint == "did you mean 'labels'?"


def test_an_ill_typed_value_is_shown_with_its_place_and_what_is_wanted(file: Path) -> None:
    error = refusal(file, "device: cpu\noverlap: wide\n")

    assert error.what.startswith(f"{file}, line 2, column 1: 'overlap' is 'wide': ")
    assert "number" in error.what


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("overlap: 0.95", "'overlap' is 0.95: input should be less than or equal to 0.9"),
        ("batch: 0", "'batch' is 0: input should be greater than or equal to 1"),
        ("device: tpu", "'device' is 'tpu': input should be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_a_value_out_of_range_is_refused(file: Path, text: str, says: str) -> None:
    assert refusal(file, text).what == f"{file}, line 1, column 1: {says}"


def test_an_ill_typed_nested_value_is_placed(file: Path) -> None:
    text = training(optimisation={"steps": 10, "learning_rate": -1.0})

    error = refusal(file, text, TrainConfig)

    place = position(text, "learning_rate", "learning_rate")
    assert error.what.startswith(f"{file}, {place}: 'optimisation.learning_rate' is -1.0: ")


def test_an_ill_typed_list_item_is_placed(file: Path) -> None:
    error = refusal(file, "bands:\n- 3\n- green\n")

    assert error.what.startswith(f"{file}, line 3, column 3: 'bands.1' is 'green': ")


def test_a_missing_key_is_named(file: Path) -> None:
    assert refusal(file, training(name=None), TrainConfig).what.endswith("the key 'name' is missing")


def test_a_missing_nested_key_is_placed_at_its_section(file: Path) -> None:
    text = training(card={"title": "t", "description": "d", "licence": "MIT"})

    error = refusal(file, text, TrainConfig)

    assert error.what == f"{file}, {position(text, 'card', 'card')}: the key 'card.training_data' is missing"


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "3\n"])
def test_a_file_without_keys_is_refused(file: Path, text: str) -> None:
    error = refusal(file, text)

    assert error.what == f"{file} holds no keys"
    assert error.hint is not None
    assert "overlap" in error.hint


@pytest.mark.parametrize(("text", "place"), [("a: [1,\n", "line 2, column 1"), ("a: 1\n b: 2\n", "line 2, column 3")])
def test_what_is_not_yaml_is_placed(file: Path, text: str, place: str) -> None:
    assert refusal(file, text).what.startswith(f"{file}, {place}: not YAML: ")


def test_a_control_character_is_not_yaml(file: Path) -> None:
    assert str(file) in refusal(file, "overlap: \x07\n").what


def test_a_file_that_is_not_text_is_refused(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00\x81")

    with pytest.raises(ConfigError, match="can't read the configuration"):
        load_config(file, RunConfig)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't read the configuration .*none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml", RunConfig)


def test_a_file_goes_on_from_another(file: Path) -> None:
    (file.parent / "base").mkdir()
    (file.parent / "base" / "first.yaml").write_text(training(gsd_m=0.5, chip_px=96))
    (file.parent / "second.yaml").write_text("extends: base/first.yaml\nchip_px: null\noptimisation: {batch: 4}\n")
    file.write_text("extends: second.yaml\nname: third\noptimisation: {steps: 7, loss: {dice: 0.5}}\n")

    config = load_config(file, TrainConfig)

    assert (config.name, config.gsd_m, config.chip_px) == ("third", 0.5, None)
    assert (config.optimisation.steps, config.optimisation.batch, config.optimisation.loss.dice) == (7, 4, 0.5)
    assert len(config.legend) == 2


def test_mappings_of_the_user_s_own_keys_are_replaced_whole(file: Path) -> None:
    data = {"training": [{"scene": "a", "labels": "b"}], "label_values": {0: "land", 1: "water"}}
    optimisation = {"steps": 2, "loss": {"dice": 0.5, "class_weights": {"land": 3}}}
    (file.parent / "base.yaml").write_text(training(data=data, optimisation=optimisation))
    file.write_text(
        "extends: base.yaml\ndata: {label_values: {1: land, 2: water}}\n"
        "optimisation: {loss: {class_weights: {water: 2}}}\n"
    )

    config = load_config(file, TrainConfig)

    assert config.data.label_values == {1: "land", 2: "water"}
    assert config.optimisation.loss.class_weights == {"water": 2}
    assert config.optimisation.loss.dice == 0.5


def test_anchors_that_hold_themselves_and_merge_keys_are_yaml_s_matter(file: Path) -> None:
    refusal(file, "extra: &x [*x]\n", RunConfig)
    file.write_text("min_area_of_class: {<<: &a {building: 5m2}, <<: *a}")
    assert load_config(file, RunConfig).min_area_of_class == {"building": 5}


def test_null_takes_away_what_is_inherited_and_errors_say_so(file: Path) -> None:
    pair = {"scene": "a", "labels": "b"}
    optimisation = {"steps": 2, "loss": {"class_weights": {"land": 3}}}
    data = {"training": [pair], "validation": {"scenes": [pair]}}
    base = training(data=data, optimisation=optimisation, architecture={"bins": [1]})
    (file.parent / "base.yaml").write_text(base)

    for more in ("start_from: m\n", "data: {validation: {blocks: {share: 0.1}}}\n"):
        assert "take that away: key: null" in str(refusal(file, "extends: base.yaml\n" + more, TrainConfig).hint)
    assert refusal(file, training(start_from="m", architecture={}), TrainConfig).hint is None
    file.write_text(
        "extends: base.yaml\nstart_from: m\narchitecture: null\n"
        "data: {validation: {scenes: null, blocks: {share: 0.1}}}\noptimisation: {loss: {class_weights: null}}\n"
    )
    config = load_config(file, TrainConfig)

    assert (config.start_from, config.architecture, config.optimisation.loss.class_weights) == ("m", None, {})
    assert config.data.validation is not None
    assert config.data.validation.scenes == ()


def test_what_is_wrong_is_placed_in_the_file_that_says_it(file: Path) -> None:
    base = file.parent / "base.yaml"
    base.write_text("chips: 4\noverlap: 0.1\n")

    assert refusal(file, "extends: base.yaml\n").what == f"{base}, line 1, column 1: unknown key 'chips'"

    base.write_text("device: cpu\noverlap: 0.1\n")
    assert refusal(file, "extends: base.yaml\noverlap: 7\n").what.startswith(
        f"{file}, line 2, column 1: 'overlap' is 7"
    )

    base.write_text("device: [\n")
    assert refusal(file, "extends: base.yaml\n").what.startswith(f"{base}, line 2, column 1: not YAML")


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (None, "can't read the configuration {base}: No such file"),
        ("extends: config.yaml\n", "{base}, line 1, column 1: {file} extends itself"),
        ("- overlap\n", "{file}, line 1, column 1: {base} holds no keys"),
    ],
)
def test_a_base_that_is_no_base_is_refused(file: Path, base: str | None, said: str) -> None:
    path = file.parent / "base.yaml"
    if base is not None:
        path.write_text(base)

    assert refusal(file, "extends: base.yaml\n").what.startswith(said.format(base=path, file=file))


def test_code_in_yaml_is_not_run(file: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    refusal(file, f"model: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{trace}']]\n")

    assert not trace.exists()


def test_a_legend_that_contradicts_itself_is_refused(file: Path) -> None:
    classes = [{"class_id": 1, "name": n, "colour": "#000000"} for n in ("land", "water")]

    error = refusal(file, training(legend=classes), TrainConfig)

    assert "'legend' is " in error.what
    assert error.what.endswith("a class id stands twice in the legend")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"label_values": {3: "land"}}}, "'training', or a published set under 'dataset'"),
        (
            {"data": {"dataset": {"name": "loveda", "root": "x"}, "training": [{"scene": "a", "labels": "b"}]}},
            "'training' is for pairs of files, and 'dataset' has its own",
        ),
        ({"data": {"dataset": {"name": "loveda", "root": "x"}, "root": "y"}}, "'root' is for pairs of files"),
        ({"data": {"dataset": {"name": "dubai", "root": "x"}}}, "'data.dataset.name' is 'dubai'"),
        ({"data": {"dataset": {"name": "loveda", "root": "x", "downlod": True}}}, "did you mean 'download'?"),
        ({"legend": None}, "the key 'legend' is missing"),
    ],
)
def test_a_training_reads_pairs_or_a_published_set(file: Path, changes: dict[str, Any], said: str) -> None:
    assert said in str(refusal(file, training(**changes), TrainConfig))


def test_a_published_set_brings_its_legend_and_codes(file: Path) -> None:
    file.write_text(training(legend=None, data={"dataset": {"name": "loveda", "root": "x"}}))

    config = load_config(file, TrainConfig)

    assert config.legend == ()
    assert config.data.label_values is None
    assert config.data.dataset is not None
    assert not config.data.dataset.download


def test_another_folder_is_that_of_the_pairs_or_of_the_set(file: Path) -> None:
    file.write_text(training())
    pairs = load_config(file, TrainConfig).data.at(Path("y"))
    file.write_text(training(data={"dataset": {"name": "loveda", "root": "x"}}))
    named = load_config(file, TrainConfig).data.at(Path("y"))

    assert pairs.root == Path("y")
    assert named.dataset is not None
    assert named.dataset.root == Path("y")


def test_label_values_must_be_in_the_legend(file: Path) -> None:
    data = {"training": [{"scene": "a", "labels": "b"}], "label_values": {1: "land", 2: "forest"}}

    assert "data.label_values names 'forest', which is not in" in refusal(file, training(data=data), TrainConfig).what


def test_weighted_classes_must_be_in_the_legend(file: Path) -> None:
    text = training(optimisation={"steps": 10, "loss": {"class_weights": {"forest": 2}}})

    assert "class_weights names 'forest', which is not in the legend" in refusal(file, text, TrainConfig).what


def test_label_values_may_be_text_or_left_out(file: Path) -> None:
    pair = {"scene": "a", "labels": "b.gpkg"}
    file.write_text(training(data={"training": [pair], "label_values": {"Wald": "land", 11100: "water"}}))
    assert load_config(file, TrainConfig).data.label_values == {"Wald": "land", 11100: "water"}

    file.write_text(training(data={"training": [pair], "ignored_values": [255, "unclear"]}))
    data = load_config(file, TrainConfig).data
    assert (data.label_values, data.ignored_values, data.class_column) == (None, (255, "unclear"), "class_name")


def test_label_values_that_yaml_takes_for_true_or_false_are_refused(file: Path) -> None:
    text = training(data={"training": [{"scene": "a", "labels": "b.gpkg"}], "ignored_values": ["NO_HERE"]})

    assert "ignored_values" in refusal(file, text.replace("NO_HERE", "no"), TrainConfig).what


@pytest.mark.parametrize(
    "validation", [{}, {"scenes": [{"scene": "c", "labels": "d"}], "blocks": {"share": 0.1}}, {"scenes": []}]
)
def test_validation_is_by_scenes_or_by_blocks(file: Path, validation: dict[str, Any]) -> None:
    data = {"training": [{"scene": "a", "labels": "b"}], "validation": validation}

    assert "either scenes or blocks are needed" in refusal(file, training(data=data), TrainConfig).what


@pytest.mark.parametrize("blocks", [{"share": 0}, {"share": 1}, {"block_px": 0}, {"buffer_px": -1}])
def test_blocks_that_make_no_sense_are_refused(file: Path, blocks: dict[str, float]) -> None:
    data = {"training": [{"scene": "a", "labels": "b"}], "validation": {"blocks": blocks}}

    assert f"data.validation.blocks.{next(iter(blocks))}" in refusal(file, training(data=data), TrainConfig).what


@pytest.mark.parametrize("name", ["Big", "", "../up", ".hidden", "a b"])
def test_names_that_are_no_folder_names_are_refused(file: Path, name: str) -> None:
    assert f"'name' is {name!r}" in refusal(file, training(name=name), TrainConfig).what


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_are_none_are_refused(file: Path, seed: int) -> None:
    said = refusal(file, training(optimisation={"steps": 10, "seed": seed}), TrainConfig)
    assert "optimisation.seed" in str(said)


def test_training_preset_loads() -> None:
    config = load_config(DUBAI, TrainConfig)

    assert legend_of(config.legend).names == ("building", "land", "road", "vegetation", "water")
    assert legend_of(config.legend)[5] == LandClass(5, "water", "#56b4e9")
    assert set(config.data.label_values or {}) == {0, 1, 2, 3, 4}
    assert not set(config.data.training) & set(config.data.held_out)
    assert config.chip_px % 48 == 0


@pytest.mark.parametrize(
    ("text", "area_m2"), [("50m2", 50), ("0.25ha", 2500), ("1 km²", 1e6), ("12", 12), ("7a", 700), (3, 3)]
)
def test_areas_have_units(text: object, area_m2: float) -> None:
    assert override(RunConfig(), {"min_area": text}).min_area == pytest.approx(area_m2)


@pytest.mark.parametrize(("text", "length_m"), [("1.5m", 1.5), ("50cm", 0.5), ("0.1 km", 100), ("2", 2)])
def test_lengths_have_units(text: str, length_m: float) -> None:
    assert override(RunConfig(), {"simplify": text}).simplify == pytest.approx(length_m)


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("2GB", 2e9), ("512 MiB", 2**29), ("1.5gib", 1.5 * 2**30), ("900000", 9e5)]
)
def test_sizes_have_units(text: str, size_bytes: float) -> None:
    assert override(RunConfig(), {"max_memory": text}).max_memory == pytest.approx(size_bytes)


@pytest.mark.parametrize("text", ["50 feet", "m2", "-3m2", "1.5m"])
def test_areas_without_sense_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--min-area"):
        override(RunConfig(), {"min_area": text})


def test_affinities_are_by_class_name() -> None:
    road = {"class_id": 1, "name": "road", "colour": "#000000", "affinity": {"land": 2.5}}
    land = {"class_id": 2, "name": "land", "colour": "#ffffff"}
    config = LegendConfig.model_validate({"legend": [road, land]})
    assert legend_of(config.legend).affinity == {(1, 2): 2.5}
    with pytest.raises(ValidationError, match="an affinity names 'land', which is not in the legend"):
        LegendConfig.model_validate({"legend": [road]})


def test_aliases_do_not_multiply(file: Path) -> None:
    levels = "".join(f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]\n" for n in range(1, 12))
    assert "aliases multiply" in refusal(file, f"a0: &a0 [x]\n{levels}").what
    merged = "".join(f"a{n}: &a{n} {{<<: [{', '.join(9 * [f'*a{n - 1}'])}]}}\n" for n in range(1, 12))
    assert "aliases multiply" in refusal(file, f"a0: &a0 {{k: v}}\n{merged}").what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[" * 5000, "nested too deeply"),
        ("model: 2026-02-30", "day is out of range"),
        ("batch: !!int x", "a value that can't be read"),
        ("picture: !!bool x", "a value that can't be read"),
        ('model: "a\\0b"', r"line 1, column 8: the character '\x00'"),
        ('"\\ud800": 1', r"the character '\ud800'"),
        ("max_memory: 1e999GB", "finite"),
        ("simplify: .inf", "finite"),
    ],
)
def test_what_yaml_can_t_make_a_value_of_is_refused(file: Path, text: str, what: str) -> None:
    assert what in refusal(file, text).what


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a device of Unix")
def test_an_endless_file_is_refused(file: Path) -> None:
    assert "and no file" in refusal(file, "extends: /dev/zero").what


def test_a_file_that_is_too_large_is_refused(file: Path) -> None:
    file.with_name("base.yaml").write_text("#" * (MOST_CHARACTERS + 1))
    assert "too large" in refusal(file, "extends: base.yaml").what
