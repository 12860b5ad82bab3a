"""Logistic regression on fashion_mnist's 60,000 images, fewer epochs and lanes: ten minutes."""

import ml_collections

from configs import a2grad


def get_config() -> ml_collections.ConfigDict:
    config = a2grad.get_config()
    config.data = "fashion_mnist"
    config.networks = "logistic"
    config.logistic.epochs = 10
    config.beta = "1,10,100"
    config.b2 = "0.999"
    config.sgd_learning_rates = "1e-2,1e-1,1"
    config.momentum = "0.9"
    return config
