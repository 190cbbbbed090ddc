"""The algorithms as a group of Processing, and the setting that they share."""

from processing.core.ProcessingConfig import ProcessingConfig, Setting
from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .algorithm import ICON
from .command import COMMAND_SETTING
from .evaluate_map import EvaluateMap
from .map_land_use import MapLandUse
from .polygonize_classes import PolygonizeClasses


class LandsegProvider(QgsProcessingProvider):
    """The provider ``landseg``."""

    def id(self):
        """Name it for scripts."""
        return "landseg"

    def name(self):
        """Name it for people."""
        return "landseg"

    def icon(self):
        """Give its icon."""
        return QIcon(ICON)

    def load(self):
        """Add the setting, then the algorithms."""
        ProcessingConfig.settingIcons[self.name()] = self.icon()
        ProcessingConfig.addSetting(
            Setting(self.name(), COMMAND_SETTING, "landseg command (found on the PATH where empty)", "", Setting.FILE)
        )
        ProcessingConfig.readSettings()
        self.refreshAlgorithms()
        return True

    def unload(self):
        """Take the setting away."""
        ProcessingConfig.removeSetting(COMMAND_SETTING)

    def loadAlgorithms(self):
        """Add the algorithms."""
        for algorithm in (MapLandUse, PolygonizeClasses, EvaluateMap):
            self.addAlgorithm(algorithm())
