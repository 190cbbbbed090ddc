"""The algorithm "Map land use"."""

from pathlib import Path

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputRasterLayer,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterFile,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterVectorDestination,
)

from .algorithm import LandsegAlgorithm, file_of, model_parameter, tidiness_parameters
from .command import run_landseg


class MapLandUse(LandsegAlgorithm):
    """``landseg run``."""

    NAME = "map_land_use"
    TITLE = "Map land use"
    HELP = (
        "Maps the land use of an image by a PSPNet: polygons and, beside them, a raster of labels and confidence, in "
        "the colours of the model's legend.\n\n"
        "The image needs the bands that the model reads, and pixels of about the size that it was made for. The "
        "shipped model is a first one, for red, green and blue at 1 m; for maps to rely on, train one on imagery of "
        "your own."
    )

    def initAlgorithm(self, configuration=None):
        """Say what it asks for and gives."""
        self.addParameter(QgsProcessingParameterRasterLayer("SCENE", "Image"))
        self.addParameter(model_parameter())
        for parameter in tidiness_parameters():
            self.addParameter(parameter)
        options = QgsProcessingParameterFile(
            "CONFIG", "File of options, for what is not set here", extension="yaml", optional=True
        )
        options.setFlags(options.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
        self.addParameter(options)
        self.addParameter(
            QgsProcessingParameterVectorDestination("OUTPUT", "Land use", QgsProcessing.TypeVectorPolygon)
        )
        self.addOutput(QgsProcessingOutputRasterLayer("LABELS", "Labels and confidence"))

    def processAlgorithm(self, parameters, context, feedback):
        """Map the image."""
        scene = self.parameterAsRasterLayer(parameters, "SCENE", context)
        polygons = self.parameterAsOutputLayer(parameters, "OUTPUT", context)
        arguments = ["run", file_of(scene), "--out", polygons, "--overwrite"]
        arguments += self.text_arguments(parameters, context, {"MODEL": "--model"})
        config = self.parameterAsFile(parameters, "CONFIG", context)
        if config:
            arguments += ["--config", config]
        arguments += self.tidiness_arguments(parameters, context)
        run_landseg(arguments, feedback)

        labels = str(Path(polygons).with_suffix(".tif"))
        if context.willLoadLayerOnCompletion(polygons):
            details = QgsProcessingContext.LayerDetails("Labels", context.project(), "LABELS")
            context.addLayerToLoadOnCompletion(labels, details)
        return {"OUTPUT": polygons, "LABELS": labels}
