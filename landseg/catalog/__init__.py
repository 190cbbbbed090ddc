"""The data catalog: STAC on disk or behind a server, searched for scenes, added to and validated."""
