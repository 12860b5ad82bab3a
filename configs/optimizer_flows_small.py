"""The same in less than two minutes: six optimisers, two terms on digits, float64."""

import ml_collections

from configs import optimizer_flows


def get_config() -> ml_collections.ConfigDict:
    config = optimizer_flows.get_config()
    config.optimizers = "sgd,adagrad,nadamw,schedule_free_sgd"
    config.learning_rates = "0.004,0.002"
    config.networks = "digits"
    config.precisions = "float64"
    config.orders = 2
    config.digits_size = 100
    return config
