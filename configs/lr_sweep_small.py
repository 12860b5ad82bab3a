"""The same in seconds: 16 learning rates x 2 seeds, 300 steps."""

import ml_collections

from configs import lr_sweep


def get_config() -> ml_collections.ConfigDict:
    config = lr_sweep.get_config()
    config.learning_rates = "1e-3:10:16"
    config.seeds = "2"
    config.steps = 300
    config.record_every = 10
    return config
