"""What the machine has that a run depends on."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import torch

from landseg import __version__
from landseg.predict import choose_device, choose_precision
from landseg.scene import GDAL_VERSION, raster_drivers

PACKAGES = ("torch", "rasterio", "shapely", "geopandas", "pyogrio", "numpy", "torchgeo", "lightning", "torchmetrics")


def examine() -> dict[str, str]:
    """Gather versions, processors, memory, disk and drivers, each as a line of text."""
    device = choose_device("auto")
    # A driver that is too old for torch counts its GPUs all the same, and would fail at their names.
    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count() * torch.cuda.is_available()))
    gpus = [f"{p.name}, {p.total_memory / 1e9:.0f} GB, sm_{p.major}{p.minor}" for p in properties]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "landseg": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: _version(name) for name in PACKAGES},
        "gdal": f"{GDAL_VERSION}, reads {', '.join(raster_drivers())}",
        "processors": f"{os.cpu_count()}, {torch.backends.cpu.get_cpu_capability()}",
        "memory": f"{memory / 1e9:.1f} GB",
        "disk here": f"{shutil.disk_usage('.').free / 1e9:.1f} GB free",
        "gpu": "; ".join(gpus) or "none that torch can use",
        "torch is built for": " ".join(torch.cuda.get_arch_list()) or "the CPU",
        "runs on": f"{device}, {str(choose_precision('auto', device)).removeprefix('torch.')}",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed (training alone needs it: landseg's extra 'train')"
