"""The same on a convolutional network of 4,266 parameters and 100 images of fashion_mnist."""

import ml_collections

from configs import principal_flow


def get_config() -> ml_collections.ConfigDict:
    config = principal_flow.get_config()
    config.data = "fashion_mnist"
    config.train_size = 100
    config.model = "cnn"
    config.model_args = "channels=(4,8),activation='tanh'"
    # After the first steps h lambda_1 is 0.6, 1.0 to 1.2, and 1.1 to 1.9.
    config.learning_rates = "0.03,0.06,0.1"
    config.steps = 500
    config.record_every = 5
    config.errors_every = 20
    config.displaced_learning_rate = 0.05
    config.displaced_steps = 1500
    config.displaced_scaled = "0.5,1.33,1.9,2.3"
    return config
