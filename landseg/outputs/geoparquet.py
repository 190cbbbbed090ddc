"""GeoParquet 1.1: polygons in columns, with a bounding box for each so that readers can skip what they don't need.

https://geoparquet.org/releases/v1.1.0/
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
from numpy.typing import NDArray
from rasterio.crs import CRS

GEOMETRY = "geometry"
BBOX = pa.struct([(side, pa.float64()) for side in ("xmin", "ymin", "xmax", "ymax")])
BBOX_PATHS = [f"bbox.{side.name}" for side in BBOX]


def write_geoparquet(
    path: Path, schema: pa.Schema, batches: Iterable[tuple[pa.RecordBatch, NDArray[np.float64]]], crs: CRS
) -> None:
    """Write record batches as row groups.

    Parameters
    ----------
    path
        Parquet file to write.
    schema
        Of the batches; its column ``geometry`` holds polygons in well-known binary, outer rings counter-clockwise.
    batches
        In the order of the file, each of N polygons with their bounds, (N, 4): left, bottom, right, top in ``crs``.
    crs
        Coordinate reference system of the polygons.

    Raises
    ------
    OSError
        If it can't be written.
    """
    # A dictionary or statistics of polygons would help no reader, and a large polygon is held in memory for each.
    other = [name for name in schema.names if name != GEOMETRY]
    options = {"compression": "zstd", "use_dictionary": other, "write_statistics": [*other, *BBOX_PATHS]}
    with pq.ParquetWriter(path, schema.append(pa.field("bbox", BBOX)), **options) as writer:
        lows, highs = [np.full(2, np.inf)], [np.full(2, -np.inf)]
        for batch, bounds in batches:
            lows.append(bounds[:, :2].min(axis=0, initial=np.inf))
            highs.append(bounds[:, 2:].max(axis=0, initial=-np.inf))
            boxes = pa.StructArray.from_arrays([pa.array(side) for side in bounds.T], fields=list(BBOX))
            writer.write_batch(batch.append_column("bbox", boxes))
        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            "crs": pyproj.CRS.from_wkt(crs.to_wkt()).to_json_dict(),
            "orientation": "counterclockwise",
            "covering": {"bbox": {side.name: ["bbox", side.name] for side in BBOX}},
        }
        total = [*np.min(lows, axis=0).tolist(), *np.max(highs, axis=0).tolist()]
        if np.isfinite(total).all():
            column["bbox"] = total
        geo = {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}
        writer.add_key_value_metadata({"geo": json.dumps(geo)})
