"""Logistic regression on the digits of scikit-learn, the reference's table: about a minute."""

import ml_collections

from configs import a2grad


def get_config() -> ml_collections.ConfigDict:
    config = a2grad.get_config()
    config.data = "digits"
    config.networks = "logistic"
    config.batch_size = 64
    config.seeds = "2"
    return config
