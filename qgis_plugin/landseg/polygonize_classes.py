"""The algorithm "Polygonize classes"."""

from qgis.core import (
    QgsProcessing,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterVectorDestination,
)

from .algorithm import LandsegAlgorithm, file_of, tidiness_parameters
from .command import run_landseg


class PolygonizeClasses(LandsegAlgorithm):
    """``landseg polygonize``."""

    NAME = "polygonize_classes"
    TITLE = "Polygonize classes"
    HELP = (
        "Draws the polygons of any raster of classes. Small ones join the neighbour with the longest common border; "
        "borders are straightened without gaps or overlaps, so that the areas still add up.\n\n"
        "Names and colours are those that the raster's file has."
    )

    def initAlgorithm(self, configuration=None):
        """Say what it asks for and gives."""
        self.addParameter(QgsProcessingParameterRasterLayer("LABELS", "Raster of classes"))
        for parameter in tidiness_parameters():
            self.addParameter(parameter)
        self.addParameter(
            QgsProcessingParameterVectorDestination("OUTPUT", "Polygons", QgsProcessing.TypeVectorPolygon)
        )

    def processAlgorithm(self, parameters, context, feedback):
        """Draw the polygons."""
        labels = file_of(self.parameterAsRasterLayer(parameters, "LABELS", context))
        polygons = self.parameterAsOutputLayer(parameters, "OUTPUT", context)
        tidiness = self.tidiness_arguments(parameters, context)
        run_landseg(["polygonize", labels, "--out", polygons, "--overwrite", *tidiness], feedback)
        return {"OUTPUT": polygons}
