"""Kill one run at random moments until it is through, and compare its products with an undisturbed run's.

    python -m benchmarks.restarts [--kills 25] [--scene SCENE.tif] [--model NAME|FOLDER] [--seed 0]

Strips are as small as they can be. When a run gets through before it was killed often enough, the next one begins anew.
"""

import argparse
import multiprocessing
import random
import tempfile
import time
from pathlib import Path

import geopandas

from benchmarks.large_scene import DEMO, machine
from landseg.config import RunConfig
from landseg.outputs.paths import OutputPaths
from landseg.run import build_plan, execute, map_job


def run(scene: Path, out: Path, config: RunConfig) -> None:
    """Map the scene, going on from what is there."""
    execute(build_plan(str(scene), out, config))


def main() -> None:
    """Parse, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--scene", type=Path, default=DEMO)
    parser.add_argument("--model", default=RunConfig().model)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run.__module__, "landseg.run"])
    moments = random.Random(arguments.seed)  # noqa: S311
    config = RunConfig(model=arguments.model, device="cpu", batch=1, overwrite=True)
    print(f"machine: {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, disturbed = (Path(folder) / name / "map.gpkg" for name in ("undisturbed", "disturbed"))
        for out in (undisturbed, disturbed):
            out.parent.mkdir()
        start = time.monotonic()
        run(arguments.scene, undisturbed, config)
        usual_s = time.monotonic() - start
        strips = len(map_job(build_plan(str(arguments.scene), disturbed, config)).strips)
        print(f"undisturbed: {usual_s:.0f} s, {strips} strips", flush=True)
        kills = 0
        while kills < arguments.kills:
            process = context.Process(target=run, args=(arguments.scene, disturbed, config))
            process.start()
            process.join(usual_s * moments.random())
            kills += process.is_alive()
            process.kill()
            process.join()
        run(arguments.scene, disturbed, config)
        once, again = (OutputPaths.of(out) for out in (undisturbed, disturbed))
        rasters = once.raster.read_bytes() == again.raster.read_bytes()
        layers = [geopandas.read_file(outputs.polygons, layer="landuse") for outputs in (once, again)]
        polygons = layers[0].equals(layers[1])
    verdict = {True: "equal", False: "DIFFER"}
    print(f"killed {kills} times: rasters {verdict[rasters]}, polygons {verdict[polygons]}")
    if not (rasters and polygons):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
