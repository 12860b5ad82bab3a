"""The digits of scikit-learn in about a minute: no momentum, 3 seeds, the published cap."""

import ml_collections

from configs import dal


def get_config() -> ml_collections.ConfigDict:
    config = dal.get_config()
    config.data = "digits"
    config.train_size = 1280
    config.learning_rates = "0.05,0.2,0.5,1,2"
    config.max_learning_rates = "5"
    config.momentum = "0"
    config.seeds = "3"
    config.steps = 400
    return config
