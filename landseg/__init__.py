"""Land-use maps from satellite and aerial GeoTIFFs by PSPNet."""

__version__ = "0.1.0"
