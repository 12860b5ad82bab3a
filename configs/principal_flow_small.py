"""The same in less than two minutes: 3 rates, 100 digits, a network 64-12-10."""

import ml_collections

from configs import principal_flow


def get_config() -> ml_collections.ConfigDict:
    config = principal_flow.get_config()
    config.train_size = 100
    config.model_args = "widths=(12,),activation='tanh',scale=0.7"
    config.learning_rates = "0.1,0.3,0.5"
    config.steps = 500
    config.record_every = 3
    config.errors_every = 25
    config.displaced_steps = 2000
    config.displaced_scaled = "0.5,0.8,1.33,1.9"
    return config
