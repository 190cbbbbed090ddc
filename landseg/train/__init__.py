"""Training and evaluation: needs landseg's extra ``train``; nothing that maps imports it."""
