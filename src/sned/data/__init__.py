"""The text and the tokens of a run: what SOURCE strings name, packed into windows.

`sources` reads SOURCE strings into documents, `tokens` packs them into `Tokens`, `overlap` keeps calibration
and evaluation apart. Nothing is imported here: `sources` is free of torch, so a SOURCE can be checked before
torch loads.
"""
