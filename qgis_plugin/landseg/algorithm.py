"""What the algorithms have in common."""

from pathlib import Path

from qgis.core import (
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingParameterNumber,
    QgsProcessingParameterString,
)
from qgis.PyQt.QtGui import QIcon

ICON = str(Path(__file__).with_name("icon.svg"))


class LandsegAlgorithm(QgsProcessingAlgorithm):
    """An algorithm that calls landseg; those derived say by what name, what for and with which parameters."""

    NAME = TITLE = HELP = ""

    def name(self):
        """Name it for scripts."""
        return self.NAME

    def displayName(self):
        """Name it for people."""
        return self.TITLE

    def shortHelpString(self):
        """Say what it is for."""
        return self.HELP

    def icon(self):
        """Give its icon."""
        return QIcon(ICON)

    def createInstance(self):
        """Make another one."""
        return type(self)()

    def text_arguments(self, parameters, context, options):
        """Give landseg options that have a text: those chosen among ``options``, parameter -> option."""
        chosen = {option: self.parameterAsString(parameters, name, context) for name, option in options.items()}
        return [part for option, text in chosen.items() if text for part in (option, text)]

    def tidiness_arguments(self, parameters, context):
        """Give minimum area and tolerance to landseg, if they were chosen."""
        arguments = []
        for name, option, unit in (("MIN_AREA", "--min-area", "m2"), ("SIMPLIFY", "--simplify", "m")):
            if parameters.get(name) is not None:
                arguments += [option, f"{self.parameterAsDouble(parameters, name, context)}{unit}"]
        return arguments


def model_parameter():
    """Ask for a model."""
    return QgsProcessingParameterString(
        "MODEL", "Model: a name, or a folder (where empty, the shipped one)", optional=True
    )


def tidiness_parameters():
    """Ask for a minimum area and a tolerance."""
    number = QgsProcessingParameterNumber
    return [
        number(name, title, number.Double, None, optional=True, minValue=0.0)
        for name, title in (
            ("MIN_AREA", "Smaller polygons join a neighbour (m²; where not set, none does)"),
            ("SIMPLIFY", "Straighten borders by at most (m; where not set, not at all)"),
        )
    ]


def file_of(layer):
    """Give the file or address of a layer, without the name of a layer in it."""
    return layer.source().split("|")[0]


def layer_arguments(layer):
    """Say to landseg which layer of its file a layer of polygons is."""
    parts = layer.source().split("|")[1:]
    if any(part.startswith("subset=") for part in parts):
        raise QgsProcessingException(
            "landseg reads whole layers: take the filter off, or save what it leaves as a file"
        )
    names = [part.removeprefix("layername=") for part in parts if part.startswith("layername=")]
    return ["--layer", names[0]] if names else []
