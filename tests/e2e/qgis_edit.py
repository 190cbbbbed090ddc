"""Run by the Python that QGIS is installed for: correct classes of a map as people do, and save the layer."""

import json
import sys

from qgis.core import QgsApplication, QgsVectorLayer
from qgis.gui import QgsAttributeForm, QgsGui

application = QgsApplication([], True)
application.initQgis()
QgsGui.editorWidgetRegistry().initEditors()
layer = QgsVectorLayer(sys.argv[1], "layer", "ogr")
fields = layer.fields()
class_id, class_name = fields.indexOf("class_id"), fields.indexOf("class_name")
first, second, third = sorted(feature.id() for feature in layer.getFeatures())[:3]

layer.startEditing()
form = QgsAttributeForm(layer, layer.getFeature(first))
form.changeAttribute("class_id", 5)
form.save()
# What a cell of the attribute table and the field calculator call.
layer.changeAttributeValue(second, class_id, 5)
layer.changeAttributeValue(third, class_name, "water")
if not layer.commitChanges():
    sys.exit("\n".join(layer.commitErrors()))

widget, read_only = layer.editorWidgetSetup(class_id), layer.editFormConfig().readOnly
choices = [item for choice in widget.config()["map"] for item in choice.items()]
closed = [field.name() for index, field in enumerate(fields) if read_only(index)]
print(json.dumps({"widget": widget.type(), "choices": choices, "read_only": closed}))
