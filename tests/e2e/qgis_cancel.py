"""Run by the Python that QGIS is installed for: start the plugin's mapping and cancel it when it has begun."""

import sys

from landseg.command import run_landseg
from qgis.core import QgsApplication, QgsProcessingException, QgsProcessingFeedback


class Impatient(QgsProcessingFeedback):
    def pushInfo(self, info):  # noqa: N802, a name that QGIS gives
        if "mapping" in info:
            self.cancel()


application = QgsApplication([], False)
application.initQgis()
try:
    run_landseg(["run", sys.argv[1], "--out", sys.argv[2]], Impatient())
except QgsProcessingException as error:
    print(error)
