"""Says what was done to a model and what it cost: as data, as a page, as a model card, as a table.

`schema` is the contract of ``report.json`` and `blocks` its parts. `html`, `card` and `text` render it for
people, with the wording of `facts`, the units of `numbers` and the pictures of `plots`.
May import errors and canon only: a report is read without torch and rendered from ``report.json`` alone.
matplotlib, jinja2, yaml and rich load when they are used.
"""

from __future__ import annotations
