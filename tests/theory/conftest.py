"""One thread, and no deadlines: a busy machine is no reason to fail."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("theory", deadline=None)
settings.load_profile("theory")
