"""Settings that must stand before torch is imported; fixtures belong to the tests that use them."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve the other worker's
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
