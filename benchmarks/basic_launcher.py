"""What Hydra's users have: its own `-m` with the basic launcher, one run after the other, with torch's threads.

DEPTHLAB_RESULTS=... python basic_launcher.py -m model=plain model.depth=10,20 seed=0,1
"""

import os
from pathlib import Path
from typing import Any, cast

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from depthlab.cli.compose import Composer
from depthlab.cli.experiments import folder
from depthlab.config import from_mapping
from depthlab.runs import execute

CONFIGS = folder("configs")
Composer(CONFIGS)  # stores the typed schema


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
def main(config: DictConfig) -> None:
    """Trains one run."""
    mapping = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))
    run = from_mapping({name: mapping[name] for name in ("data", "model", "train", "probes", "seed")})
    execute(run, root=Path(os.environ["DEPTHLAB_RESULTS"]) / "runs", device=torch.device("cpu"))


if __name__ == "__main__":
    main()
