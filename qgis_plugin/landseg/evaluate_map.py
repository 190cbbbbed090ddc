"""The algorithm "Evaluate map"."""

import json
from pathlib import Path

from qgis.core import (
    QgsProcessing,
    QgsProcessingOutputNumber,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMapLayer,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsVectorLayer,
)

from .algorithm import LandsegAlgorithm, file_of, layer_arguments, model_parameter
from .command import run_landseg


class EvaluateMap(LandsegAlgorithm):
    """``landseg evaluate``."""

    NAME = "evaluate_map"
    TITLE = "Evaluate map"
    HELP = (
        "Maps an image by a model and compares the map with reference classes on the same ground, a raster or "
        "polygons: IoU, F1 and the confusion of the classes.\n\n"
        "landseg has to be installed with its extra 'train'."
    )

    def initAlgorithm(self, configuration=None):
        """Say what it asks for and gives."""
        self.addParameter(QgsProcessingParameterRasterLayer("SCENE", "Image"))
        kinds = [QgsProcessing.TypeRaster, QgsProcessing.TypeVectorPolygon]
        self.addParameter(QgsProcessingParameterMapLayer("LABELS", "Reference classes", types=kinds))
        self.addParameter(
            QgsProcessingParameterString(
                "LABEL_VALUES", "What the values mean, as 0=building,1=land (where empty, class ids)", optional=True
            )
        )
        self.addParameter(
            QgsProcessingParameterString("IGNORED_VALUES", "Values that are to have no class, as 0,255", optional=True)
        )
        self.addParameter(
            QgsProcessingParameterString("CLASS_COLUMN", "Field of the classes, of polygons", defaultValue="class_name")
        )
        self.addParameter(model_parameter())
        self.addParameter(QgsProcessingParameterFileDestination("OUTPUT", "Scores", "JSON files (*.json)"))
        self.addParameter(
            QgsProcessingParameterFileDestination(
                "FIGURE", "Confusion and reliability", "PNG files (*.png)", optional=True, createByDefault=False
            )
        )
        self.addOutput(QgsProcessingOutputNumber("MIOU", "Mean IoU"))
        self.addOutput(QgsProcessingOutputNumber("OVERALL_ACCURACY", "Overall accuracy"))

    def processAlgorithm(self, parameters, context, feedback):
        """Map the image and compare."""
        scene = self.parameterAsRasterLayer(parameters, "SCENE", context)
        labels = self.parameterAsLayer(parameters, "LABELS", context)
        arguments = ["evaluate", "--scene", file_of(scene), "--labels", file_of(labels), "--json"]
        texts = {"MODEL": "--model", "LABEL_VALUES": "--label-values", "IGNORED_VALUES": "--ignored-values"}
        arguments += self.text_arguments(parameters, context, texts)
        if isinstance(labels, QgsVectorLayer):
            arguments += ["--class-column", self.parameterAsString(parameters, "CLASS_COLUMN", context)]
            arguments += layer_arguments(labels)
        outputs = {"OUTPUT": self.parameterAsFileOutput(parameters, "OUTPUT", context)}
        figure = self.parameterAsFileOutput(parameters, "FIGURE", context)
        if figure:
            arguments += ["--figure", figure, "--overwrite"]
            outputs["FIGURE"] = figure
        text = run_landseg(arguments, feedback)

        Path(outputs["OUTPUT"]).write_text(text, encoding="utf-8")
        scores = json.loads(text)
        for name, value in scores["iou"].items():
            feedback.pushInfo(f"IoU of {name}: {'not in the reference' if value is None else f'{value:.3f}'}")
        return {**outputs, "MIOU": scores["miou"], "OVERALL_ACCURACY": scores["overall_accuracy"]}
