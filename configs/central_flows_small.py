"""The same on 200 digits with one hidden layer, one learning rate each: under two minutes."""

import ml_collections

from configs import central_flows


def get_config() -> ml_collections.ConfigDict:
    config = central_flows.get_config()
    config.train_size = 200
    config.model_args = "widths=(16,),activation='tanh',scale=0.7"
    config.learning_rates.gradient_descent = "0.5"
    config.learning_rates.scalar_rmsprop = "0.1"
    config.learning_rates.rmsprop = "1e-3"
    config.steps = 400
    return config
