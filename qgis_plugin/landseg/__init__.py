"""The plugin's entry, as QGIS looks for it."""


def classFactory(_iface):
    """Make the plugin."""
    from .plugin import LandsegPlugin

    return LandsegPlugin()
