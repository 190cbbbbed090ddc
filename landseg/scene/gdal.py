"""How GDAL reads for landseg: its options, and which of its warnings are said otherwise."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import rasterio
from rasterio.drivers import raster_driver_extensions
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning

from landseg.hrefs import s3_endpoint

GDAL_VERSION: str = rasterio.__gdal_version__

# Where a raster has both, GDAL lets the declared nodata value decide and not the alpha band; so does landseg. The
# warning would come once per chip.
warnings.filterwarnings("ignore", category=NodataShadowWarning)
# `describe_scene` says it in an error of its own.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

_HTTP_OPTIONS: Mapping[str, Any] = {
    # How often, and after how many seconds, a server that failed is asked again; GDAL's own default is not to.
    "GDAL_HTTP_MAX_RETRY": 4,
    "GDAL_HTTP_RETRY_DELAY": 1,
    # GDAL's own default is to wait for ever. Here a connection has so many seconds to come about; after that, fewer
    # than so many bytes a second, for so many seconds, are a failure.
    "GDAL_HTTP_CONNECTTIMEOUT": 20,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 100,
    "GDAL_HTTP_LOW_SPEED_TIME": 30,
}


def _s3_options() -> Mapping[str, Any]:
    """Say in GDAL's words which server the environment names for what is on S3."""
    endpoint = s3_endpoint()
    if endpoint is None:
        return {}
    # Names of buckets go into the path: few servers but Amazon's have a host for each.
    return {
        "AWS_S3_ENDPOINT": endpoint.netloc + endpoint.path.rstrip("/"),
        "AWS_HTTPS": "YES" if endpoint.scheme == "https" else "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }


GDAL_OPTIONS: Mapping[str, Any] = {
    # Those that the environment sets are left to it.
    **{name: value for name, value in {**_HTTP_OPTIONS, **_s3_options()}.items() if name not in os.environ},
    # Chips of a row share blocks: without a cache of at least two rows of blocks each block is decoded twice.
    # Bytes; GDAL's own default is 5 % of main memory, which no one asked for.
    "GDAL_CACHEMAX": 256 * 2**20,
}


def raster_drivers() -> list[str]:
    """Name the kinds of raster that this GDAL knows by their suffix."""
    return sorted(set(raster_driver_extensions().values()))
