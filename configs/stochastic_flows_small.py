"""The same in less than two minutes: ensembles of 64, 100 examples, fewer iterations."""

import ml_collections

from configs import stochastic_flows


def get_config() -> ml_collections.ConfigDict:
    config = stochastic_flows.get_config()
    config.learning_rates = "0.1:0.00625:5"
    config.train_size = 100
    config.seeds = "64"
    config.network_rates = "0.1,0.4"
    config.steps = 20
    config.adam_steps = 64
    return config
