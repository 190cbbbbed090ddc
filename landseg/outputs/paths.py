"""Where a map's products go, and what may not be replaced there."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Self

from landseg.errors import OutputExistsError, UsageError
from landseg.outputs.drafts import Drafts, check_writable
from landseg.outputs.manifest import listed_files
from landseg.outputs.storage import StorageFolder, located
from landseg.outputs.vector import companions, layer_products


@dataclass(frozen=True)
class OutputPaths:
    """Where a run's products are; those for object storage, where they would be if they stayed in the work folder.

    Parameters
    ----------
    polygons
        The layer, in the format of its suffix: see `landseg.outputs.vector.DRIVERS`.
    raster
        Cloud-optimised GeoTIFF; its sidecar is ``<raster>.aux.xml``, and a QGIS style of the same stem is beside it.
    manifest
        STAC Item.
    picture
        PNG, or None if none was asked for.
    project
        QGIS project, or None if none was asked for.
    storage
        Where the products are uploaded to, or None if they stay on this machine.
    """

    polygons: Path
    raster: Path
    manifest: Path
    picture: Path | None
    project: Path | None
    storage: StorageFolder | None = None

    @classmethod
    def of(
        cls, out: Path | str, *, picture: bool = False, project: bool = False, work_folder: Path | None = None
    ) -> Self:
        """Derive all paths from the main product's, or its URL on object storage.

        Raises
        ------
        UsageError
            If it is no URL of a file on S3, or a work folder is named for what needs none.
        """
        out, storage = located(out, work_folder)
        return cls(
            polygons=out,
            raster=out.with_suffix(".tif"),
            manifest=out.with_suffix(".json"),
            picture=out.with_suffix(".png") if picture else None,
            project=out.with_suffix(".qgz") if project else None,
            storage=storage,
        )

    @property
    def folder(self) -> Path | None:
        """The folder on this machine where all of them end up, if any."""
        return self.polygons.parent if self.storage is None else None

    @property
    def sidecar(self) -> Path:
        """The raster's class names, in the form that GDAL reads."""
        return self.raster.with_name(self.raster.name + ".aux.xml")

    @property
    def style(self) -> Path:
        """The style that QGIS applies to raster and polygons by itself, since it has their name."""
        return self.raster.with_suffix(".qml")

    @property
    def all(self) -> tuple[Path, ...]:
        """Every product, in the order of their appearance: the manifest, which vouches for the others, last."""
        optional = [path for path in (self.picture, self.project) if path is not None]
        beside = (*optional, *companions(self.polygons))
        return (self.sidecar, self.style, self.raster, *beside, self.polygons, self.manifest)

    @property
    def assets(self) -> dict[str, Path]:
        """The products that a manifest lists, by their keys among its assets."""
        raster = {"raster": self.raster, "raster-classes": self.sidecar, "style": self.style}
        optional = {"picture": self.picture, "qgis-project": self.project}
        return layer_products(self.polygons) | raster | {key: path for key, path in optional.items() if path}

    @property
    def places(self) -> tuple[str, ...]:
        """Path or URL of every product, in the same order."""
        return tuple(map(self.place, self.all))

    def place(self, path: Path) -> str:
        """Give the path or URL of a product."""
        return str(path) if self.storage is None else f"{self.storage.url}/{path.name}"

    def sizes(self) -> dict[str, int]:
        """Give the bytes of those products that are there, by their names.

        Raises
        ------
        UsageError
            If there is no such bucket.
        DiskError
            If the server does not answer, or not to us.
        """
        if self.storage is not None:
            return self.storage.sizes([path.name for path in self.all])
        return {path.name: path.stat().st_size for path in self.all if path.exists()}

    def open(self, path: Path) -> AbstractContextManager[BufferedReader]:
        """Read a product that is there."""
        return path.open("rb") if self.storage is None else self.storage.open(path.name)

    def read_manifest(self) -> str | None:
        """Read the text of the manifest that is there; None if there is none."""
        if self.storage is not None:
            return self.storage.read_text(self.manifest.name)
        return _text_of(self.manifest)

    def listings(self) -> list[dict[str, Mapping[str, Any]]]:
        """Give the files of the manifest that is there, and of one that a run has drafted that was killed meanwhile."""
        drafts = Drafts(self.polygons)
        if self.storage is not None:
            drafted = self.storage.within(drafts.folder.name).read_text(self.manifest.name)
        else:
            drafted = _text_of(drafts.path(self.manifest))
        return [listed_files(text) for text in (self.read_manifest(), drafted) if text is not None]

    def publish(self, drafts: Drafts) -> None:
        """Put the products that are drafted into their places, the manifest last.

        A bucket has the manifest's draft until then, by which any machine knows what a run has left that was killed.

        Raises
        ------
        OutputExistsError
            If another program has changes of a file that it replaces still beside it.
        DiskError
            If the folder can't be written to, or the server does not take a product.
        """
        if self.storage is None:
            drafts.publish(self.all)
            return
        drafted = self.storage.within(drafts.folder.name)
        drafted.upload([drafts.path(self.manifest)])
        self.storage.upload([drafts.path(product) for product in self.all])
        drafted.remove()


def _text_of(path: Path) -> str | None:
    """Read a manifest, damaged or not; None if there is none."""
    return path.read_text("utf-8", "replace") if path.is_file() else None


def check_places(outputs: OutputPaths, scenes: Iterable[str], *, overwrite: bool) -> None:
    """Refuse places that can't be written to, are scenes, or hold what may not be replaced.

    Raises
    ------
    UsageError
        If the output folder is missing, a product exists and overwriting was not asked for, or something else is in its
        place.
    DiskError
        If the output folder can't be written to.
    """
    check_writable(outputs.polygons, outputs.all, overwrite=True)
    existing = [product for product in outputs.all if product.exists()]
    for scene in scenes:
        taken = [product for product in existing if Path(scene).exists() and product.samefile(scene)]
        if scene in outputs.places or taken:
            place = scene if scene in outputs.places else taken[0]
            raise UsageError(f"the output {place} is a scene to be mapped", "choose another place for it")
    _check_existing(outputs, overwrite=overwrite)


def _check_existing(outputs: OutputPaths, *, overwrite: bool) -> None:
    """Refuse to replace what is there unless that was asked for, and always what is no part of an earlier map.

    Overwriting was asked for by the name of the polygons alone. A run that was killed has left its folder, and perhaps
    some products without their manifest.
    """
    existing = outputs.sizes()
    # The one that was asked for by name comes first.
    for path in (outputs.polygons, *outputs.all):
        if path.name in existing and not overwrite:
            raise OutputExistsError(
                f"{outputs.place(path)} exists already", "replace it with --overwrite, or choose another --out"
            )
    if not existing or Drafts(outputs.polygons).folder.is_dir():
        return
    own = {path.name for path in (outputs.polygons, *companions(outputs.polygons))}
    for listed in filter(None, outputs.listings()):
        own |= {outputs.manifest.name, *listed}
    for path in outputs.all:
        if path.name in existing and path.name not in own:
            raise OutputExistsError(
                f"{outputs.place(path)} exists and is no part of an earlier map",
                "move it away, or choose another --out",
            )
