"""The same in a minute: 4 and 10 classes, one seed, 60 steps."""

import ml_collections

from configs import spectrum


def get_config() -> ml_collections.ConfigDict:
    config = spectrum.get_config()
    config.classes = "4,10"
    config.seeds = "1"
    config.steps = 60
    config.lanczos_steps = 40
    return config
