"""Run by the Python that QGIS is installed for: start the plugin's mapping and cancel it when it has begun."""

import sys

from qgis.core import QgsApplication, QgsProcessingException, QgsProcessingFeedback

from landseg import command


class Impatient(QgsProcessingFeedback):
    def pushInfo(self, info):  # noqa: N802, a name that QGIS gives
        if "mapping" in info:
            self.cancel()


# The demo is a single strip, which a quick machine has done before patience ends.
command.PATIENCE_S = 0
application = QgsApplication([], False)
application.initQgis()
try:
    command.run_landseg(["run", sys.argv[1], "--out", sys.argv[2]], Impatient())
except QgsProcessingException as error:
    print(error)
