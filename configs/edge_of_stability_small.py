"""The same on 500 digits of scikit-learn with a tanh network 64-32-32-32-10: under two minutes."""

import ml_collections

from configs import edge_of_stability


def get_config() -> ml_collections.ConfigDict:
    config = edge_of_stability.get_config()
    config.data = "digits"
    config.train_size = 500
    config.normalization = "per_feature"
    config.model_args = "widths=(32,32,32),activation='tanh',scale=0.7"
    config.learning_rates.gradient_descent = "0.2,0.3,0.4,0.6"
    config.learning_rates.heavy_ball = "0.4,0.8,1.0,1.2"
    config.learning_rates.nesterov = "0.1,0.2,0.25,0.3"
    config.learning_rates.rmsprop = "2e-4,4e-4,8e-4"
    config.learning_rates.adam = "5e-4,1e-3,2e-3"
    config.steps = 2000
    config.record_every = 15
    config.flow_time = 600.0
    config.flow_records = 300
    return config
