"""What QGIS starts and stops."""

from qgis.core import QgsApplication

from .provider import LandsegProvider


class LandsegPlugin:
    """Keeps the provider with Processing as long as the plugin is on."""

    def __init__(self):
        self.provider = None

    def initProcessing(self):
        """Add the provider; `qgis_process` calls this and nothing else."""
        self.provider = LandsegProvider()
        QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self):
        """Start with QGIS' window."""
        self.initProcessing()

    def unload(self):
        """Take the provider away."""
        QgsApplication.processingRegistry().removeProvider(self.provider)
