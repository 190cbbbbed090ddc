"""The command line: options to a configuration, a configuration to a run. Heavy imports wait inside the commands."""

import json
import logging
import re
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from landseg import __version__
from landseg.errors import (
    BatchError,
    CatalogError,
    LandsegError,
    MemoryLimitError,
    OutputExistsError,
    RunInterruptedError,
    SceneError,
    UsageError,
)
from landseg.logs import log_to_stderr

if TYPE_CHECKING:
    from landseg.config import RunConfig
    from landseg.run import Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="--debug after any command shows the traceback of an error.",
)
models = typer.Typer(help="The models at hand.", no_args_is_help=True)
app.add_typer(models, name="models")
style = typer.Typer(help="How maps look in other software.", no_args_is_help=True)
app.add_typer(style, name="style")
catalog = typer.Typer(help="The data catalog: scenes, training sets, models and maps as STAC.", no_args_is_help=True)
app.add_typer(catalog, name="catalog")

Json = Annotated[bool, typer.Option("--json", help="print the result as JSON on stdout")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress on stderr")]
MinArea = Annotated[str | None, typer.Option(help="merge smaller polygons: 50m2, or 1ha,building=0.25ha; keep all")]
Simplify = Annotated[str | None, typer.Option(help="straighten outlines by at most so much: 1.5m; not")]
Overwrite = Annotated[bool | None, typer.Option("--overwrite", help="replace existing outputs")]
Model = Annotated[str | None, typer.Option(help="name of a shipped model, or a bundle's folder")]
Config = Annotated[Path | None, typer.Option(help="YAML file of options; those given here come first")]
Bands = Annotated[str | None, typer.Option(help="band numbers in the model's order, such as 3,2,1")]
Overlap = Annotated[float | None, typer.Option(help="part of a chip that neighbours share; 0.25")]
Views = Annotated[int | None, typer.Option(help="average over so many symmetries of each chip: 1, 2, 4 or 8; 1")]
Device = Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="where the network runs; auto")]
Precision = Annotated[Literal["auto", "fp32", "bf16"] | None, typer.Option(help="what it computes in; auto")]
Batch = Annotated[int | None, typer.Option(help="chips per forward pass, in swaths of up to 8; by device")]
NodataPolicy = Annotated[
    Literal["all", "any"] | None, typer.Option(help="a pixel is invalid when all, or any, bands are nodata; all")
]
ForceGsd = Annotated[bool | None, typer.Option("--force-gsd", help="take pixels as they are")]
AssumeCrs = Annotated[str | None, typer.Option(help="CRS of a scene that names none, as EPSG:n")]
Labels = Annotated[Path, typer.Option(help="reference classes on the same ground: a raster, or polygons")]
ClassColumn = Annotated[str, typer.Option(help="column of polygons that holds names of classes, or codes")]
Layer = Annotated[str | None, typer.Option(help="layer of the polygons, where a file has several")]
CatalogRoot = Annotated[str, typer.Option("--catalog", help="catalog.json of the root: a path, or a URL to read")]
LabelValues = Annotated[
    str | None, typer.Option(help="what the labels' values mean, as 0=building,1=land; by default the class ids")
]
IgnoredValues = Annotated[str | None, typer.Option(help="values in the labels that are to have no class, as 0,255")]


DEFAULT_CATALOG = "data_catalog/catalog.json"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"landseg {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Land-use maps from satellite and aerial GeoTIFFs by PSPNet."""


@app.command()
def run(
    scene: Annotated[str, typer.Argument(help="raster to map: a path, or a URL (https://, s3://)")],
    out: Annotated[
        str,
        typer.Option(
            help="polygons: .gpkg, .parquet, .fgb, .geojson, .geojsonl or .shp, a path or s3://…; .tif and .json beside"
        ),
    ],
    model: Model = None,
    config: Config = None,
    bands: Bands = None,
    overlap: Overlap = None,
    views: Views = None,
    device: Device = None,
    precision: Precision = None,
    batch: Batch = None,
    nodata_policy: NodataPolicy = None,
    on_error: Annotated[
        Literal["fail", "nodata"] | None,
        typer.Option(help="pixels that can't be read stop the run, or are nodata; fail"),
    ] = None,
    force_gsd: ForceGsd = None,
    assume_crs: AssumeCrs = None,
    workers: Annotated[int | None, typer.Option(help="processes that share the work; 1")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Dask scheduler to use the workers of: tcp://host:8786")] = None,
    max_memory: Annotated[str | None, typer.Option(help="main memory to keep to: 2GB; half of what is free")] = None,
    min_area: MinArea = None,
    simplify: Simplify = None,
    picture: Annotated[bool | None, typer.Option("--picture", help="draw the map as a PNG too")] = None,
    qgis_project: Annotated[
        bool | None, typer.Option("--qgis-project", help="write a QGIS project of map and scene too")
    ] = None,
    work_folder: Annotated[
        Path | None, typer.Option(help="where outputs for s3:// are made, if not in the user's cache")
    ] = None,
    overwrite: Overwrite = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Map the land use of a scene."""
    from landseg import terminal
    from landseg.run import build_plan, check, execute

    given = {
        "model": model,
        "bands": bands,
        "overlap": overlap,
        "views": views,
        "device": device,
        "precision": precision,
        "batch": batch,
        "nodata_policy": nodata_policy,
        "on_error": on_error,
        "force_gsd": force_gsd,
        "assume_crs": assume_crs,
        "workers": workers,
        "scheduler": scheduler,
        "max_memory": max_memory,
        **_min_areas(min_area),
        "simplify": simplify,
        "picture": picture,
        "qgis_project": qgis_project,
        "work_folder": work_folder,
        "overwrite": overwrite,
    }
    plan = build_plan(scene, out, _run_config(config, given))
    try:
        check(plan)
    except OutputExistsError:
        # Who asks for the plan gets it, and then hears of what is in its way.
        if dry_run:
            _show_plan(plan, as_json=as_json)
        raise
    if dry_run:
        _show_plan(plan, as_json=as_json)
        return
    with terminal.show_progress(quiet) as on_progress:
        result = execute(plan, on_progress)
    if as_json:
        typer.echo(json.dumps(result.summary(), indent=2))
    else:
        terminal.print_areas(result.areas)
        for place in result.outputs.places:
            typer.echo(place)


def _run_config(path: Path | None, given: dict[str, Any]) -> "RunConfig":
    """Put what was given on the command line over the options in a file, if there is one."""
    from landseg.config import RunConfig, load_config, override

    bands = None if given["bands"] is None else _band_numbers(given["bands"])
    return override(RunConfig() if path is None else load_config(path, RunConfig), given | {"bands": bands})


def _show_plan(plan: "Plan", *, as_json: bool) -> None:
    from landseg import terminal
    from landseg.run import projected_seconds

    # Of a scheduler's workers this machine can't tell.
    seconds = None if plan.config.scheduler else round(projected_seconds(plan), 1)
    if as_json:
        typer.echo(json.dumps(plan.summary() | {"seconds": seconds}, indent=2))
    else:
        terminal.print_plan(plan.summary(), seconds)


@app.command()
def batch(
    pipeline: Annotated[Path, typer.Argument(help="YAML file, such as pipelines/monthly.yaml")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done and why, and stop")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="JSON lines on stderr, no progress, no table")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Map many scenes: skip what is current, go on past a failure, report.

    LANDSEG_… variables come before the file's keys: LANDSEG_DEVICE=cuda, LANDSEG_OUT=/srv/maps.
    """
    from landseg import terminal
    from landseg.batch import load_pipeline, run_batch

    with terminal.show_progress(quiet or log_json or dry_run) as on_progress:
        report = run_batch(load_pipeline(pipeline), pipeline.stem, dry_run=dry_run, on_progress=on_progress)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    elif dry_run or not log_json:
        # The log of a batch says of each scene what the table says, and schedulers keep both streams as one.
        terminal.print_report(report)
    if failed := report.counts.get("failed", 0):
        hint = "run it again to do what is left; what is damaged has to be replaced first"
        raise BatchError(f"{failed} of {len(report.entries)} failed", hint)


@app.command()
def polygonize(
    labels: Annotated[Path, typer.Argument(help="raster whose band 1 holds classes: a landseg map, or any other")],
    out: Annotated[Path, typer.Option(help="polygons: .gpkg, .parquet, .fgb, .geojson, .geojsonl or .shp")],
    min_area: MinArea = None,
    simplify: Simplify = None,
    legend: Annotated[
        Path | None, typer.Option(help="YAML file of the classes' names and colours; by default the raster's own")
    ] = None,
    assume_crs: Annotated[str | None, typer.Option(help="CRS of a raster that names none, as EPSG:n")] = None,
    overwrite: Overwrite = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw the polygons of a raster of classes."""
    from landseg import terminal
    from landseg.config import PolygonConfig, override
    from landseg.polygonizing import polygonize_raster

    given = {**_min_areas(min_area), "simplify": simplify, "assume_crs": assume_crs}
    config = override(PolygonConfig(), given)
    if not quiet:
        terminal.say(f"drawing the polygons of {labels}")
    layer = polygonize_raster(labels, out, config, legend, overwrite=bool(overwrite))
    if as_json:
        summary = {"outputs": [str(file) for file in layer.files], "areas": [asdict(area) for area in layer.areas]}
        typer.echo(json.dumps(summary, indent=2))
    else:
        terminal.print_areas(layer.areas)
        for file in layer.files:
            typer.echo(file)


def _min_areas(text: str | None) -> dict[str, Any]:
    """Split ``1ha,building=0.25ha`` into the minimum of all classes and those of some."""
    if text is None:
        return {}
    general, of_class = None, {}
    for part in text.split(","):
        name, equals, area = part.rpartition("=")
        if equals:
            of_class[name.strip()] = area
        else:
            general = area
    return {"min_area": general, "min_area_of_class": of_class or None}


def _band_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"--bands {text} is not a list of numbers", "give band numbers from 1: --bands 3,2,1"
        ) from error


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/train/dubai.yaml")],
    data_root: Annotated[Path | None, typer.Option(help="folder of the imagery, instead of the file's")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a model on scenes and labels; an interrupted training goes on where it stopped."""
    from landseg.config import TrainConfig, load_config

    _need_training_packages()
    from landseg.train import job

    plan = load_config(config, TrainConfig)
    if data_root is not None:
        plan = plan.model_copy(update={"data": plan.data.at(data_root)})
    typer.echo(job.train(plan, quiet=quiet).folder)


def _need_training_packages() -> None:
    _need_packages("training", "train", "lightning", "torchgeo", "torchmetrics")


def _need_packages(task: str, extra: str, *names: str) -> None:
    from importlib.util import find_spec

    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{task} needs {missing[0]}, which is not installed",
            f"install landseg with its extra '{extra}': pip install '.[{extra}]' in its folder",
        )


@app.command()
def evaluate(
    scene: Annotated[str, typer.Option(help="raster to map: a path, or a URL")],
    labels: Labels,
    model: Model = None,
    label_values: LabelValues = None,
    ignored_values: IgnoredValues = None,
    class_column: ClassColumn = "class_name",
    layer: Layer = None,
    config: Config = None,
    bands: Bands = None,
    overlap: Overlap = None,
    views: Views = None,
    device: Device = None,
    precision: Precision = None,
    batch: Batch = None,
    nodata_policy: NodataPolicy = None,
    force_gsd: ForceGsd = None,
    assume_crs: AssumeCrs = None,
    figure: Annotated[Path | None, typer.Option(help="PNG to draw confusion and reliability into")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing figure")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare a model's map of a scene, made as `run` makes it, with reference labels."""
    _need_training_packages()
    from landseg import terminal
    from landseg.model.bundle import read_bundle
    from landseg.outputs.drafts import check_writable
    from landseg.train import trial
    from landseg.train.figures import draw_scores

    given = {
        "model": model,
        "bands": bands,
        "overlap": overlap,
        "views": views,
        "device": device,
        "precision": precision,
        "batch": batch,
        "nodata_policy": nodata_policy,
        "force_gsd": force_gsd,
        "assume_crs": assume_crs,
    }
    options = _run_config(config, given)
    legend = read_bundle(options.model).card.legend
    values = _label_values(label_values, legend.names)
    if figure is not None:
        if figure.suffix.lower() != ".png":
            raise UsageError(f"--figure {figure} does not end in .png", "figures are written as PNG")
        check_writable(figure, [figure], overwrite=overwrite)
    with terminal.show_progress(quiet) as on_progress:
        scores = trial.evaluate(
            options.model,
            scene,
            labels,
            values,
            options,
            on_progress,
            ignored_values=_ignored_values(ignored_values),
            class_column=class_column,
            layer=layer,
        )
    if figure is not None:
        draw_scores(scores, legend, figure)
    if as_json:
        typer.echo(json.dumps(scores.to_dict(legend), indent=2))
    else:
        terminal.print_scores(scores.to_dict(legend))


def _label_values(text: str | None, names: tuple[str, ...]) -> dict[int | str, str] | None:
    if text is None:
        return None
    values: dict[int | str, str] = {}
    for part in text.split(","):
        value, _, name = part.rpartition("=")
        if not value.strip():
            raise UsageError(f"--label-values: '{part}' is not of the form value=class")
        if name.strip() not in names:
            raise UsageError(f"--label-values: the model has no class '{name}'", f"its classes: {', '.join(names)}")
        values[value.strip()] = name.strip()
    return values


def _ignored_values(text: str | None) -> tuple[str, ...]:
    values = () if text is None else tuple(value.strip() for value in text.split(","))
    if "" in values:
        raise UsageError(f"--ignored-values: '{text}' is not of the form 0,255")
    return values


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """Name the models that come with landseg."""
    from landseg.model.bundle import read_bundle, shipped_models

    cards = [read_bundle(name).card for name in shipped_models()]
    if as_json:
        typer.echo(json.dumps([{"name": card.name, "title": card.title} for card in cards], indent=2))
    else:
        for card in cards:
            typer.echo(f"{card.name}  {card.title}")


@models.command("show")
def show_model(model: Annotated[str, typer.Argument(help="name or folder")], as_json: Json = False) -> None:
    """Print a model's card."""
    from landseg import terminal
    from landseg.model.bundle import CARD_FILE, read_bundle

    bundle = read_bundle(model)
    if as_json:
        typer.echo((bundle.folder / CARD_FILE).read_text(encoding="utf-8"), nl=False)
    else:
        terminal.print_card(bundle.card)


@models.command("import")
def import_model(
    checkpoint: Annotated[Path, typer.Argument(help="weights: a .safetensors, .pth or .pt file")],
    out: Annotated[Path, typer.Option(help="folder of the bundle to write; its name is the model's")],
    card: Annotated[Path, typer.Option(help="YAML file of what the weights can't say; see docs/models.md")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing bundle")] = False,
) -> None:
    """Make a model of a PSPNet from semseg, mmsegmentation or segmentation_models.pytorch."""
    from landseg.importing import import_model as write_imported

    typer.echo(write_imported(checkpoint, card, out, overwrite=overwrite).folder)


@models.command("calibrate")
def calibrate_model(
    model: Annotated[str, typer.Argument(help="name or folder")],
    scene: Annotated[str, typer.Option(help="raster that it was not trained on: a path, or a URL")],
    labels: Labels,
    out: Annotated[Path, typer.Option(help="folder of the bundle to write; its name is the model's")],
    label_values: LabelValues = None,
    ignored_values: IgnoredValues = None,
    class_column: ClassColumn = "class_name",
    layer: Layer = None,
    config: Config = None,
    bands: Bands = None,
    device: Device = None,
    precision: Precision = None,
    nodata_policy: NodataPolicy = None,
    force_gsd: ForceGsd = None,
    assume_crs: AssumeCrs = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing bundle")] = False,
    quiet: Quiet = False,
) -> None:
    """Fit a model's confidence to a labelled scene; the weights stay as they are."""
    _need_training_packages()
    from landseg import terminal
    from landseg.model.bundle import read_bundle
    from landseg.train import trial

    given = {
        "bands": bands,
        "device": device,
        "precision": precision,
        "nodata_policy": nodata_policy,
        "force_gsd": force_gsd,
        "assume_crs": assume_crs,
    }
    values = _label_values(label_values, read_bundle(model).card.legend.names)
    with terminal.show_progress(quiet) as on_progress:
        bundle = trial.calibrate(
            model,
            scene,
            labels,
            out,
            values,
            _run_config(config, given),
            ignored_values=_ignored_values(ignored_values),
            class_column=class_column,
            layer=layer,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    typer.echo(f"temperature {bundle.card.temperature:g}", err=True)
    typer.echo(bundle.folder)


@models.command("export")
def export_model(
    model: Annotated[str, typer.Argument(help="name or folder")],
    to: Annotated[Literal["onnx", "torchscript"], typer.Option("--format", help="form of the file")],
    out: Annotated[Path, typer.Option(help="file to write")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing file")] = False,
) -> None:
    """Write a model for other software: chips in, logits out."""
    from landseg.model.bundle import read_bundle
    from landseg.model.export import export_onnx, export_torchscript
    from landseg.outputs.drafts import check_writable

    if to == "onnx":
        _need_packages("exporting to ONNX", "export", "onnx", "onnxscript")
    check_writable(out, [out], overwrite=overwrite)
    export = export_onnx if to == "onnx" else export_torchscript
    export(read_bundle(model), out)
    typer.echo(out)


@catalog.command("add")
def add_to_catalog(
    path: Annotated[
        Path, typer.Argument(help="a scene's raster, a STAC item such as landuse.json, or a model's folder")
    ],
    root: Annotated[Path, typer.Option("--catalog", help="catalog.json of the root; made if need be")] = Path(
        DEFAULT_CATALOG
    ),
    collection: Annotated[str | None, typer.Option(help="by default scenes, maps or models, by what it is")] = None,
    date: Annotated[
        str | None, typer.Option(help="when a scene was taken: 2026-03-04, or 2026-03-01/2026-03-31")
    ] = None,
    item_id: Annotated[str | None, typer.Option("--id", help="a scene's id; by default the file's name")] = None,
    title: Annotated[str | None, typer.Option(help="what to call a scene")] = None,
    licence: Annotated[str, typer.Option(help="SPDX identifier of a scene's licence")] = "other",
    cloud_cover: Annotated[float | None, typer.Option(min=0, max=100, help="percent of a scene")] = None,
    labels: Annotated[Path | None, typer.Option(help="raster of reference classes of a scene")] = None,
    label_values: Annotated[str | None, typer.Option(help="what the labels' values mean, as 0=building,1=land")] = None,
) -> None:
    """Describe a scene, a map or a model in a catalog; its files stay where they are."""
    from landseg.catalog import add_item, item_folder
    from landseg.catalog.items import Description, add_labels, add_thumbnail, kind_of, read_item, scene_item

    if not path.exists():
        raise SceneError(f"there is no {path}", "name a scene's raster, a map's .json or a model's folder")
    card = path / "model.json"
    if path.is_dir() and not card.exists():
        raise CatalogError(f"{path} is no model's folder: it has no {card.name}", "of other folders, name each raster")
    if path.is_dir() or path.suffix == ".json":
        item = read_item(card if path.is_dir() else path)
        typer.echo(add_item(root, item, collection or kind_of(item)))
        return
    if date is None:
        raise UsageError(f"when was {path} taken?", "say so: --date 2026-03-04, or --date 2026-03-01/2026-03-31")
    if (labels is None) != (label_values is None):
        raise UsageError("--labels and --label-values go together", "say what the values mean: 0=building,1=land")
    item, thumbnail = scene_item(item_id or path.stem, path, Description(date, title, licence, cloud_cover))
    if labels is not None and label_values is not None:
        add_labels(item, labels, _class_values(label_values))
    add_thumbnail(item, item_folder(root, collection or "scenes", item.id) / "thumbnail.png", thumbnail)
    typer.echo(add_item(root, item, collection or "scenes"))


def _class_values(text: str) -> dict[int, str]:
    pairs = [re.fullmatch(r"\s*(\d+)\s*=\s*(\S.*)", part) for part in text.split(",")]
    classes = {int(pair[1]): pair[2].strip() for pair in pairs if pair}
    if len(classes) < len(pairs):
        raise UsageError(f"--label-values: '{text}' is not of the form 0=building,1=land")
    return classes


@catalog.command("list")
def list_catalog(root: CatalogRoot = DEFAULT_CATALOG, as_json: Json = False) -> None:
    """Name what is in a catalog."""
    from landseg import terminal
    from landseg.catalog import items_of, open_catalog

    items = list(items_of(open_catalog(root)))
    if as_json:
        typer.echo(json.dumps([item.to_dict(include_self_link=False) for item in items], indent=2))
    else:
        terminal.print_items(items)


@catalog.command("show")
def show_item(
    item_id: Annotated[str, typer.Argument(help="an item's id")],
    root: CatalogRoot = DEFAULT_CATALOG,
    as_json: Json = False,
) -> None:
    """Print what a catalog knows of a scene, a map or a model."""
    from landseg import terminal
    from landseg.catalog import find_item, open_catalog

    item = find_item(open_catalog(root), item_id)
    if as_json:
        typer.echo(json.dumps(item.to_dict(include_self_link=False), indent=2))
    else:
        terminal.print_item(item)


@catalog.command("validate")
def validate_catalog(root: CatalogRoot = DEFAULT_CATALOG, as_json: Json = False) -> None:
    """Check a catalog's JSON by its schemas, its links, and its files by their checksums; needs no network."""
    from landseg.catalog import open_catalog
    from landseg.catalog.validation import validate
    from landseg.outputs import counted

    found = validate(open_catalog(root))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        for line in found.unchecked:
            typer.echo(f"not checked: {line}", err=True)
        for line in found.faults:
            typer.echo(line)
        checked = f"{counted(found.objects, 'object')} and {counted(found.assets, 'file')}"
        typer.echo(f"{checked} checked, {counted(len(found.faults), 'fault')}")
    if found.faults:
        raise CatalogError(f"the catalog {root} is not what it says", "add what changed again: landseg catalog add …")


@app.command()
def report(
    map_path: Annotated[Path, typer.Argument(metavar="MAP", help="GeoPackage that a run wrote, its .json beside it")],
    out: Annotated[Path, typer.Option(help="HTML file to write")],
    scene: Annotated[
        str | None, typer.Option(help="imagery below the map; by default the scene that was mapped")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing page")] = False,
) -> None:
    """Make a page of a map to look at: one file with the map, its figures and how it was made."""
    from landseg.outputs.drafts import Drafts, check_writable
    from landseg.outputs.report import find_imagery, read_map, write_report

    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out} does not end in .html", "the page is an HTML file")
    check_writable(out, [out], overwrite=overwrite)
    content = read_map(map_path)
    with Drafts(out) as drafts:
        write_report(drafts.path(out), content, find_imagery(content, scene))
        drafts.publish([out])
    typer.echo(out)


@style.command("export")
def export_style(
    out: Annotated[Path, typer.Option(help="file to write: .qml for QGIS, .sld for map servers")],
    model: Model = None,
    styled: Annotated[
        Literal["polygons", "raster"], typer.Option("--for", help="what an .sld is for; a .qml fits both")
    ] = "polygons",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing file")] = False,
) -> None:
    """Write the style of a model's maps: its classes, by name and colour."""
    from landseg.model.bundle import DEFAULT_MODEL, read_bundle
    from landseg.outputs.drafts import Drafts, check_writable
    from landseg.outputs.style import write_style

    legend = read_bundle(model or DEFAULT_MODEL).card.legend
    check_writable(out, [out], overwrite=overwrite)
    with Drafts(out) as drafts:
        write_style(drafts.path(out), legend, styled)
        drafts.publish([out])
    typer.echo(out)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Tell what this machine has: versions, GPU, memory, GDAL drivers."""
    from landseg import terminal
    from landseg.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps(findings, indent=2))
    else:
        terminal.print_pairs(findings)


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line and leave with the exit code that `landseg.errors` gives."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    signal.signal(signal.SIGTERM, _stop)
    log_to_stderr(as_json="--log-json" in arguments, quiet="--quiet" in arguments)
    try:
        app(arguments)
    except LandsegError as error:
        _fail(error, debug)
    except MemoryError as error:
        _fail(MemoryLimitError(f"main memory does not suffice: {error or 'no more is to be had'}"), debug)
    except Exception as error:
        if debug:
            raise
        what = f"internal error: {type(error).__name__}: {error}"
        _fail(
            LandsegError(what, "an input that is not what it seems, or a fault of landseg's: --debug shows where"),
            debug,
        )
    except SystemExit as leaving:
        if leaving.code == RunInterruptedError.exit_code:
            _fail(RunInterruptedError("stopped; nothing was written"), debug)
        raise


def _fail(error: LandsegError, debug: bool) -> NoReturn:
    if debug:
        raise error
    logging.getLogger("landseg").error("%s", error)
    sys.exit(error.exit_code)
