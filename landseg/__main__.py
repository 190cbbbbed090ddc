"""``python -m landseg`` is ``landseg``."""

from landseg.cli import main

main()
