"""The reference's perceptron on digits: 3 learning rates, batches of 10, half a minute."""

import ml_collections

from configs import fluctuation_dissipation


def get_config() -> ml_collections.ConfigDict:
    config = fluctuation_dissipation.get_config()
    config.data = "digits"
    config.model_args = "widths=(100, 100),activation='relu',initialization='glorot_uniform'"
    config.batch_size = 10
    config.learning_rates = "0.05,0.1,0.2"
    config.steps = 30000
    config.record_every = 301
    return config
