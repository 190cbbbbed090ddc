"""Training and evaluation: needs ``pip install landseg[train]``; nothing that maps imports it."""
