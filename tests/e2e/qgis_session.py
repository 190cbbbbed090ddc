"""Run by the Python that QGIS is installed for: load layers as QGIS does, tell what it sees as JSON, and draw them."""

import json
import sys
from pathlib import Path

from qgis.core import (
    Qgis,
    QgsApplication,
    QgsExpression,
    QgsExpressionContext,
    QgsExpressionContextUtils,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor

CHECKERS = (Qgis.GeometryValidationEngine.QgisInternal, Qgis.GeometryValidationEngine.Geos)


def open_layer(source):
    layer = QgsRasterLayer(source) if source.endswith(".tif") else QgsVectorLayer(source, "layer", "ogr")
    if not layer.isValid():
        sys.exit(f"QGIS can't open {source}")
    return layer


def tell(layer):
    seen = {
        "valid": layer.isValid(),
        "crs": layer.crs().authid(),
        "opacity": layer.opacity(),
        "about": layer.metadata().abstract(),
    }
    if isinstance(layer, QgsRasterLayer):
        seen["renderer"] = layer.renderer().type()
        if seen["renderer"] == "paletted":
            seen["classes"] = [[int(c.value), c.label, c.color.name()] for c in layer.renderer().classes()]
        return seen
    if layer.isSpatial():
        seen["renderer"] = layer.renderer().type()
        if seen["renderer"] == "categorizedSymbol":
            seen["attribute"] = layer.renderer().classAttribute()
            seen["classes"] = [
                [int(c.value()), c.label(), c.symbol().color().name()] for c in layer.renderer().categories()
            ]
        if seen["renderer"] == "RuleRenderer":
            rules = layer.renderer().rootRule().children()
            seen["rules"] = [[r.filterExpression(), r.label(), r.symbol().color().name()] for r in rules]
    seen["features"] = layer.featureCount()
    seen["aliases"] = {field.name(): field.alias() for field in layer.fields()}
    return seen


def faults(layer):
    """Give what QGIS' checkers say against any geometry; one of them takes its time with long borders."""
    return [
        fault.what()
        for feature in layer.getFeatures()
        for checker in CHECKERS
        for fault in feature.geometry().validateGeometry(checker)
    ]


def draw(layers, extent, path):
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(layers[0].crs())
    settings.setExtent(extent)
    settings.setOutputSize(QSize(800, 800))
    settings.setBackgroundColor(QColor("white"))
    # Colours between two classes are no class's.
    settings.setFlag(QgsMapSettings.Antialiasing, False)
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(str(path))


def open_project(path):
    project = QgsProject.instance()
    if not project.read(path):
        sys.exit(f"QGIS can't open {path}: {project.error()}")
    return project


def tell_project(project):
    root = project.layerTreeRoot()
    return {
        "title": project.title(),
        "crs": project.crs().authid(),
        "groups": {
            group.name(): [[node.name(), node.isVisible(), tell(node.layer())] for node in group.findLayers()]
            for group in root.children()
        },
        "untitled": [node.name() for node in root.children() if node.customProperty("legend/title-style") == "hidden"],
        "measured": [measured_area(layer) for layer in drawn(project) if isinstance(layer, QgsVectorLayer)],
        "drawn_from_the_top": [layer.name() for layer in drawn(project)],
    }


def measured_area(layer):
    """Sum up what the field calculator makes of ``$area``."""
    context = QgsExpressionContext(QgsExpressionContextUtils.globalProjectLayerScopes(layer))
    area = QgsExpression("$area")
    area.prepare(context)
    total = 0.0
    for feature in layer.getFeatures():
        context.setFeature(feature)
        total += area.evaluate(context)
    return total


def drawn(project):
    """Give what is switched on, the uppermost first."""
    root = project.layerTreeRoot()
    return [layer for layer in root.layerOrder() if layer.isSpatial() and root.findLayer(layer).isVisible()]


application = QgsApplication([], False)
application.initQgis()
folder, checked = Path(sys.argv[1]), sys.argv[2]
answers = {}
for argument in sys.argv[3:]:
    if argument.endswith(".qgz"):
        opened = open_project(argument)
        answers[Path(argument).name] = tell_project(opened)
        view = opened.viewSettings().defaultViewExtent()
        draw(drawn(opened), view, folder / f"{Path(argument).name}.png")
        continue
    if argument.endswith((".qml", ".sld")):
        load = opened.loadSldStyle if argument.endswith(".sld") else opened.loadNamedStyle
        message, done = load(argument)
        if not done:
            sys.exit(f"QGIS can't apply {argument}: {message}")
        answers[Path(argument).name] = tell(opened)
        continue
    opened = open_layer(argument)
    answers[Path(argument).name] = tell(opened)
    if argument == checked:
        answers[Path(argument).name]["faults"] = faults(opened)
    if isinstance(opened, QgsRasterLayer):
        opened.saveSldStyle(str(folder / f"{Path(argument).name}.sld"))
    if opened.isSpatial():
        draw([opened], opened.extent(), folder / f"{Path(argument).name}.png")
print(json.dumps(answers))
