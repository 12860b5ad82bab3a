"""3 networks x 1 learning rate x 2 seeds on digits, in less than two minutes."""

import ml_collections

from configs import gradient_directions


def get_config() -> ml_collections.ConfigDict:
    config = gradient_directions.get_config()
    config.learning_rates = "0.1"
    config.seeds = "2"
    # The MLP is 64-100-100-10.
    config.networks = "mlp,cnn,cnn_batch"
    config.stem_strides = 1
    config.data = "digits"
    config.batch_size = 64
    config.gradients = 100
    config.steps = 660
    config.record_every = 22
    config.directions_every = 3
    return config
