import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pystac
import pytest
import torch
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from safetensors.torch import load_file, save_file
from stac_model.schema import MLModelExtension, MLModelProperties

from landseg.errors import BundleError, UsageError
from landseg.legend import LandClass, Legend
from landseg.model.bundle import (
    CARD_FILE,
    WEIGHTS_FILE,
    Bundle,
    Card,
    find_bundle,
    read_bundle,
    shipped_models,
    write_bundle,
)
from landseg.model.pspnet import Architecture, PSPNet

CARD = Card(
    name="tiny",
    title="Tiny",
    description="A network of random weights.",
    licence="CC0-1.0",
    created="2026-01-02T03:04:05Z",
    architecture=Architecture(in_channels=4, classes=3, output_stride=16, bins=(1, 2, 4), stem="7x7"),
    bands=("red", "green", "blue", "nir"),
    gsd_m=0.5,
    chip_px=96,
    mean=(1.5, 2.0, 3.0, 4.0),
    std=(10.0, 20.0, 30.0, 40.0),
    legend=Legend(
        (LandClass(7, "water", "#56b4e9"), LandClass(3, "lake", "#0a0bff", 7), LandClass(9, "road", "#000000")),
        {(3, 7): 2.0},
    ),
    value_range=(0.0, 3000.0),
    temperature=1.75,
    training={"data": "none"},
    held_out={"miou": 0.5, "iou": {"water": 0.25}},
    limits=("Good for nothing.",),
)


@pytest.fixture(scope="module")
def network() -> PSPNet:
    torch.manual_seed(0)
    network = PSPNet(CARD.architecture, auxiliary=True)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return network


@pytest.fixture
def bundle(tmp_path: Path, network: PSPNet) -> Bundle:
    return write_bundle(tmp_path / "tiny", CARD, network)


@pytest.mark.parametrize(
    ("training", "source"),
    [
        ({"data": "none"}, None),
        ({"optimisation": {"initial_weights": None}}, None),
        ({"optimisation": {"initial_weights": "runs/resnet50.pth"}}, "resnet50.pth"),
        ({"started_from": {"name": "county"}, "optimisation": {"initial_weights": None}}, "county"),
        ({"imported_from": "pspnet.pth"}, "pspnet.pth"),
    ],
)
def test_a_card_tells_what_its_weights_began_as(training: dict[str, Any], source: str | None) -> None:
    properties = dataclasses.replace(CARD, training=training).to_stac("00", 1)["properties"]
    assert properties["mlm:pretrained"] == (source is not None)
    assert properties["mlm:pretrained_source"] == source


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    card = folder / CARD_FILE
    item = json.loads(card.read_text(encoding="utf-8"))
    change(item)
    card.write_text(json.dumps(item), encoding="utf-8")


def replace_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Replace weights, the card vouching for the new ones."""
    save_file(weights, folder / WEIGHTS_FILE)
    digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    edit(folder, lambda item: item["assets"]["weights"].update({"file:checksum": "1220" + digest}))


def refusal(folder: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        read_bundle(str(folder)).load_network()
    assert caught.value.exit_code == 3
    return caught.value


def test_card_comes_back_as_it_was_written(bundle: Bundle) -> None:
    assert read_bundle(str(bundle.folder)) == bundle
    assert bundle.card == CARD


@pytest.mark.parametrize("option", [f.name for f in dataclasses.fields(Architecture)])
def test_a_card_must_record_every_option(bundle: Bundle, option: str) -> None:
    edit(bundle.folder, lambda item: item["properties"]["landseg:architecture"].pop(option))
    assert f"lacks '{option}'" in refusal(bundle.folder).what


def test_every_option_of_the_architecture_comes_back(bundle: Bundle) -> None:
    unusual = Architecture(
        backbone="resnet34", in_channels=4, classes=3, output_stride=16, bins=(1, 5), pooling="max", stem="deep-64",
        align_corners=False, first_block_dilation="contracted", basic_block_dilation="first", stages=3,
        concatenation="pyramid-first", normalise_bin_1=False, level_channels=7, head_channels=9, bottleneck_kernel=1,
        classifier_kernel=3, auxiliary=False,
    )  # fmt: skip
    usual = Architecture()
    assert all(getattr(unusual, f.name) != getattr(usual, f.name) for f in dataclasses.fields(Architecture))
    item = json.loads(json.dumps(dataclasses.replace(CARD, architecture=unusual).to_stac(bundle.sha256, 1)))

    assert Card.from_stac(item).architecture == unusual


def test_card_without_a_value_range_comes_back_without(tmp_path: Path, network: PSPNet) -> None:
    card = dataclasses.replace(CARD, value_range=None)

    write_bundle(tmp_path / "tiny", card, network)

    assert read_bundle(str(tmp_path / "tiny")).card == card


def test_a_card_from_before_calibration_has_temperature_1(bundle: Bundle) -> None:
    edit(bundle.folder, lambda item: item["properties"].pop("landseg:temperature"))

    assert read_bundle(str(bundle.folder)).card.temperature == 1


@pytest.mark.parametrize("temperature", [0, -1.5, float("inf"), float("nan")])
def test_a_temperature_that_makes_no_sense_is_refused(bundle: Bundle, temperature: float) -> None:
    edit(bundle.folder, lambda item: item["properties"].update({"landseg:temperature": temperature}))

    assert "temperature" in refusal(bundle.folder).what


def test_weights_come_back_within_16_bits(bundle: Bundle, network: PSPNet) -> None:
    loaded = bundle.load_network()
    original = network.state_dict()

    assert not loaded.training
    assert loaded.auxiliary is None
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == original[name].dtype
        # 11 bits of significand: off by at most 2 ** -11 of the value, or 2 ** -25 below the normal range.
        assert torch.all((tensor - original[name]).abs() <= original[name].abs() * 2**-11 + 2**-25), name


def test_loaded_network_answers_as_the_saved_one(bundle: Bundle, network: PSPNet) -> None:
    x = torch.randn(1, 4, 96, 96, generator=torch.Generator().manual_seed(1))

    network.eval()
    with torch.inference_mode():
        expected, actual = network(x), bundle.load_network()(x)

    assert (actual - expected).abs().max() < 0.01 * expected.std()


def test_weights_file_holds_16_bits(bundle: Bundle) -> None:
    stored = load_file(bundle.folder / WEIGHTS_FILE)

    assert {t.dtype for t in stored.values()} == {torch.float16, torch.int64}


def test_the_auxiliary_head_comes_back_where_it_is_asked_for(bundle: Bundle, network: PSPNet) -> None:
    x = torch.randn(1, 4, 96, 96, generator=torch.Generator().manual_seed(1))

    network.eval()
    with torch.inference_mode():
        expected, actual = (n(x, with_auxiliary=True) for n in (network, bundle.load_network(auxiliary=True)))

    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours - theirs).abs().max() < 0.01 * theirs.std()


def test_a_bundle_without_an_auxiliary_head_loads_all_the_same(bundle: Bundle) -> None:
    stored = load_file(bundle.folder / WEIGHTS_FILE)
    plain = {name: tensor for name, tensor in stored.items() if not name.startswith("auxiliary.")}
    assert len(plain) == len(stored) - 8
    replace_weights(bundle.folder, plain)

    loaded = read_bundle(str(bundle.folder)).load_network(auxiliary=True)

    assert loaded.auxiliary is None
    assert loaded.state_dict().keys() == plain.keys()


def test_half_an_auxiliary_head_is_refused_where_it_is_asked_for(bundle: Bundle) -> None:
    stored = load_file(bundle.folder / WEIGHTS_FILE)
    del stored["auxiliary.4.bias"]
    replace_weights(bundle.folder, stored)
    damaged = read_bundle(str(bundle.folder))

    assert damaged.load_network().auxiliary is None
    with pytest.raises(BundleError, match=r"lacks weights: auxiliary\.4\.bias"):
        damaged.load_network(auxiliary=True)


def test_an_auxiliary_head_that_the_card_denies_is_refused_where_it_is_asked_for(bundle: Bundle) -> None:
    edit(bundle.folder, lambda item: item["properties"]["landseg:architecture"].update({"auxiliary": False}))
    contradicted = read_bundle(str(bundle.folder))

    assert contradicted.load_network().auxiliary is None
    with pytest.raises(BundleError, match=r"has unknown weights: auxiliary\.0\.weight and 7 more"):
        contradicted.load_network(auxiliary=True)


def test_a_new_bundle_replaces_the_old_one_and_leaves_nothing_else(bundle: Bundle, network: PSPNet) -> None:
    (bundle.folder / "stale").touch()

    write_bundle(bundle.folder, dataclasses.replace(CARD, title="Second"), network)

    assert read_bundle(str(bundle.folder)).card.title == "Second"
    assert {p.name for p in bundle.folder.iterdir()} == {CARD_FILE, WEIGHTS_FILE}
    assert [p.name for p in bundle.folder.parent.iterdir()] == ["tiny"]


def test_a_failed_write_leaves_the_old_bundle(bundle: Bundle, network: PSPNet, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("landseg.model.bundle.save_file", full)
    with pytest.raises(OSError, match="No space"):
        write_bundle(bundle.folder, CARD, network)

    assert read_bundle(str(bundle.folder)) == bundle
    assert [p.name for p in bundle.folder.parent.iterdir()] == ["tiny"]


def test_the_old_bundle_comes_back_where_the_new_one_can_t_take_its_place(
    bundle: Bundle, network: PSPNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def refused(self: Path, target: Path) -> Path:
        if target == bundle.folder and self.name != ".tiny-former":
            raise PermissionError(13, "in use")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(PermissionError):
        write_bundle(bundle.folder, CARD, network)

    assert read_bundle(str(bundle.folder)) == bundle
    assert [p.name for p in bundle.folder.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_kill_at_any_step_of_a_replacement_loses_no_bundle(
    bundle: Bundle, network: PSPNet, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Before, between and after the two renames; a process that is killed there clears up nothing."""
    script = """
import os, shutil, sys
from dataclasses import replace
from pathlib import Path
from landseg.model import bundle
old = bundle.read_bundle(sys.argv[1])
network, steps = old.load_network(), []
def killed(function):
    def step(*given, **options):
        steps.append(function)
        if len(steps) == int(sys.argv[2]):
            os._exit(7)
        return function(*given, **options)
    return step
Path.replace, shutil.rmtree = killed(Path.replace), killed(shutil.rmtree)
bundle.write_bundle(old.folder, replace(old.card, title="Second"), network)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(bundle.folder), str(step)], check=False)
    assert killed.returncode == 7
    if step == 2:
        with pytest.raises(BundleError, match="was being replaced"):
            read_bundle(str(bundle.folder))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("landseg.model.bundle.save_file", full)
        with pytest.raises(OSError, match="No space"):
            write_bundle(bundle.folder, CARD, network)
    assert read_bundle(str(bundle.folder)).card.title == ("Second" if step == 3 else CARD.title)

    write_bundle(bundle.folder, dataclasses.replace(CARD, title="Third"), network)
    assert read_bundle(str(bundle.folder)).card.title == "Third"
    assert not (bundle.folder.parent / ".tiny-former").exists()


def test_card_is_a_stac_item(bundle: Bundle) -> None:
    stored = json.loads((bundle.folder / CARD_FILE).read_text(encoding="utf-8"))

    item = pystac.Item.from_dict(stored)

    assert item.id == "tiny"
    assert item.datetime is not None
    assert item.datetime.isoformat() == "2026-01-02T03:04:05+00:00"
    assert item.assets["weights"].href == f"./{WEIGHTS_FILE}"
    # The core's schema comes with pystac, so this asks nothing of the network.
    JsonSchemaSTACValidator().validate_core(stored, pystac.STACObjectType.ITEM, "1.1.0")


def test_card_follows_the_machine_learning_model_extension(bundle: Bundle) -> None:
    item = pystac.Item.from_dict(json.loads((bundle.folder / CARD_FILE).read_text(encoding="utf-8")))

    model = MLModelProperties(**item.properties)

    assert any("/mlm/v1." in uri for uri in item.stac_extensions)
    assert model.name == "tiny"
    assert model.input[0].input.shape == [-1, 4, 96, 96]
    assert model.output[0].result.shape == [-1, 3, 96, 96]
    assert model.output[0].classes is not None
    assert [(c.value, c.name, c.color_hint) for c in model.output[0].classes] == [
        (7, "water", "56B4E9"),
        (3, "lake", "0A0BFF"),
        (9, "road", "000000"),
    ]
    known = {f"mlm:{name}" for name in MLModelProperties.model_fields}
    assert {key for key in item.properties if key.startswith("mlm:")} <= known
    MLModelExtension.ext(item, add_if_missing=True).apply(model)


def test_card_describes_the_bands_that_its_input_names(bundle: Bundle) -> None:
    # Two rules of the extension's schema that stac-model leaves unchecked: bands that mlm:input names are described
    # by the Item's own "bands", and stand along a dimension called "bands".
    properties = json.loads((bundle.folder / CARD_FILE).read_text(encoding="utf-8"))["properties"]
    chip = properties["mlm:input"][0]

    assert [band["name"] for band in properties["bands"]] == chip["bands"] == list(CARD.bands)
    axis = chip["input"]["dim_order"].index("bands")
    assert chip["input"]["shape"][axis] == len(CARD.bands)


def test_card_counts_the_parameters_of_the_network_that_answers(bundle: Bundle) -> None:
    properties = json.loads((bundle.folder / CARD_FILE).read_text(encoding="utf-8"))["properties"]

    assert properties["mlm:total_parameters"] == sum(p.numel() for p in bundle.load_network().parameters())


def test_checksum_is_the_weights_sha256_as_a_multihash(bundle: Bundle) -> None:
    asset = json.loads((bundle.folder / CARD_FILE).read_text(encoding="utf-8"))["assets"]["weights"]
    digest = hashlib.sha256((bundle.folder / WEIGHTS_FILE).read_bytes()).digest()

    assert bytes.fromhex(asset["file:checksum"]) == b"\x12\x20" + digest  # SHA-256, 32 bytes
    assert bundle.sha256 == digest.hex()


def test_damaged_weights_are_refused_unread(bundle: Bundle) -> None:
    weights = bundle.folder / WEIGHTS_FILE
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)

    assert "is damaged or not the card's" in refusal(bundle.folder).what


def test_missing_weights_are_refused(bundle: Bundle) -> None:
    (bundle.folder / WEIGHTS_FILE).unlink()

    assert f"lacks {WEIGHTS_FILE}" in refusal(bundle.folder).what


def test_lacking_weights_are_named(bundle: Bundle) -> None:
    stored = load_file(bundle.folder / WEIGHTS_FILE)
    del stored["head.0.weight"], stored["backbone.conv1.weight"]
    replace_weights(bundle.folder, stored)

    assert "lacks weights: backbone.conv1.weight and 1 more" in refusal(bundle.folder).what


def test_unknown_weights_are_named(bundle: Bundle) -> None:
    stored = load_file(bundle.folder / WEIGHTS_FILE)
    replace_weights(bundle.folder, stored | {"head.9.weight": torch.zeros(1)})

    assert refusal(bundle.folder).what.endswith("has unknown weights: head.9.weight")


def test_misshapen_weights_are_named(bundle: Bundle) -> None:
    stored = load_file(bundle.folder / WEIGHTS_FILE)
    replace_weights(bundle.folder, stored | {"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)})

    error = refusal(bundle.folder)

    assert error.what.endswith("has misshapen weights: backbone.conv1.weight")
    assert error.hint is not None
    assert "resnet18" in error.hint


class Boom:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("save", [lambda value, path: path.write_bytes(pickle.dumps(value)), torch.save])
def test_no_pickle_is_loaded(bundle: Bundle, tmp_path: Path, save: Callable[[Any, Path], object]) -> None:
    trace = tmp_path / "trace"
    weights = bundle.folder / WEIGHTS_FILE
    save(Boom(trace), weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    edit(bundle.folder, lambda item: item["assets"]["weights"].update({"file:checksum": "1220" + digest}))

    assert "is not a safetensors file" in refusal(bundle.folder).what
    assert not trace.exists()


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"null", b'{"properties": null}'])
def test_a_card_that_is_no_card_is_refused(bundle: Bundle, text: bytes) -> None:
    (bundle.folder / CARD_FILE).write_bytes(text)

    assert str(bundle.folder / CARD_FILE) in refusal(bundle.folder).what


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ((), "id"),
        (("properties",), "gsd"),
        (("properties",), "mlm:input"),
        (("properties",), "landseg:architecture"),
        (("properties", "mlm:input", 0, "input"), "shape"),
        (("properties", "mlm:output", 0), "classification:classes"),
        (("assets", "weights"), "file:checksum"),
    ],
)
def test_a_missing_field_is_named(bundle: Bundle, where: tuple[str | int, ...], name: str) -> None:
    def remove(item: Any) -> None:
        for key in where:
            item = item[key]
        del item[name]

    edit(bundle.folder, remove)

    assert refusal(bundle.folder).what == f"{bundle.folder / CARD_FILE} lacks '{name}'"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p["mlm:input"][0]["bands"].pop(), "differ in number"),
        (lambda p: p["mlm:output"][0]["classification:classes"].pop(), "differ in number"),
        (lambda p: p["mlm:input"][0]["value_scaling"][1].update(stddev=0), "must be positive"),
        (lambda p: p.update(gsd=-1), "must be positive"),
        (lambda p: p.update(gsd="wide"), "wide"),
        (lambda p: p["mlm:input"].clear(), "out of range"),
        (lambda p: p["landseg:architecture"].update(depth=3), "depth"),
        (lambda p: p["mlm:output"][0]["classification:classes"][2].update(value=0), "class id 0"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(
    bundle: Bundle, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    edit(bundle.folder, lambda item: change(item["properties"]))

    assert says in refusal(bundle.folder).what


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "resnet9000"},
        {"output_stride": 4},
        {"bins": [0, 1]},
        {"pooling": "median"},
        {"stem": "5x5"},
        {"stages": 1},
        {"stages": 2},
        {"align_corners": "no"},
        {"head_channels": -1},
    ],
)
def test_an_architecture_that_can_t_be_built_is_refused(bundle: Bundle, change: dict[str, Any]) -> None:
    edit(bundle.folder, lambda item: item["properties"]["landseg:architecture"].update(change))

    assert CARD_FILE in refusal(bundle.folder).what


def test_an_unknown_model_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="there is no model 'no-such-model'") as caught:
        read_bundle("no-such-model")

    assert caught.value.exit_code == 2
    assert not isinstance(caught.value, BundleError)
    assert caught.value.hint is not None
    assert all(name in caught.value.hint for name in shipped_models())


def test_a_folder_without_a_card_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"it has no {CARD_FILE}"):
        find_bundle(str(tmp_path))


def test_shipped_models_are_found_by_name(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    monkeypatch.setattr("landseg.model.bundle.SHIPPED", bundle.folder.parent)

    assert shipped_models() == ["tiny"]
    assert find_bundle("tiny") == bundle.folder


@pytest.mark.parametrize(
    "change",
    [
        lambda item: item.update(id=5),
        lambda item: item["properties"].update(title="\ud800"),
        lambda item: item["properties"].update(datetime=5),
        lambda item: item["properties"].update({"landseg:limits": [1]}),
        lambda item: item["properties"].update({"landseg:held_out": [1]}),
        lambda item: item["properties"].update({"landseg:training": "none"}),
        lambda item: item["properties"]["mlm:input"][0]["input"].update(shape=[float("inf")]),
        lambda item: item["properties"]["landseg:architecture"].update(bins=[1.5, 2, 4]),
        lambda item: item["properties"]["landseg:architecture"].update(bins=[1] * 10**5),
        lambda item: item["properties"]["landseg:architecture"].update(head_channels=1.5),
        lambda item: item["properties"]["landseg:architecture"].update(head_channels=True),
    ],
)
def test_a_card_of_other_types_is_refused(bundle: Bundle, change: Callable[[dict[str, Any]], Any]) -> None:
    edit(bundle.folder, change)
    with pytest.raises(BundleError, match="is not a model card that landseg can use"):
        read_bundle(str(bundle.folder))


def test_a_card_that_is_nested_too_deeply_is_refused(bundle: Bundle) -> None:
    (bundle.folder / CARD_FILE).write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(BundleError, match="recursion"):
        read_bundle(str(bundle.folder))


def test_a_network_that_the_weights_are_not_of_takes_no_memory(bundle: Bundle) -> None:
    edit(bundle.folder, lambda item: item["properties"]["landseg:architecture"].update(head_channels=10**9))
    with pytest.raises(BundleError, match="has misshapen weights"):
        read_bundle(str(bundle.folder)).load_network()


@pytest.mark.skipif(os.name == "nt", reason="modes of Unix")
@pytest.mark.parametrize(("umask", "folder", "file"), [(0o002, 0o775, 0o664), (0o027, 0o750, 0o640)])
def test_a_bundle_is_for_whom_the_umask_says(
    tmp_path: Path, network: PSPNet, umask: int, folder: int, file: int
) -> None:
    former = os.umask(umask)
    try:
        place = write_bundle(tmp_path / "tiny", CARD, network).folder
    finally:
        os.umask(former)
    assert place.stat().st_mode & 0o777 == folder
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {file}
