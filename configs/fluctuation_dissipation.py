"""Yaida's perceptron on mnist5k: 4 learning rates, batches of 100 with replacement, L2 0.01."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Data, model and loss as in configs/lr_sweep.py; fashion_mnist needs --data_dir.
    config.data = "mnist5k"
    config.train_size = 0
    config.normalization = "standard"
    config.labels = "one_hot"
    config.model = "mlp"
    config.model_args = "widths=(200, 200),activation='relu',initialization='glorot_uniform'"
    config.loss = "cross_entropy"
    # lambda of (lambda / 2) |theta|^2, in the loss. Without it nothing becomes stationary.
    config.weight_decay = 0.01

    # The second relation needs batches drawn with replacement.
    config.sampling = "with_replacement"
    config.batch_size = 100
    config.learning_rates = "0.05,0.1,0.2,0.4"
    config.seeds = "1"
    # mu and nu of `v' = mu v - (1 - nu) g`, `theta' = theta + eta v'`.
    config.momentum = 0.0
    config.dampening = 0.0

    # What sets the learning rate, separated by ";": constant; step(0.5,0.75), a tenth at each of
    # these shares of the run; ratio, the published schedule; residual; norm_trend; sasa.
    config.schedules = "constant"
    # X and Y of the schedules that lower the rate by themselves, and epochs between their tests.
    config.tolerance = 0.01
    config.decrease = 0.1
    config.test_epochs = 1

    config.steps = 8000
    # Not a divisor of an epoch, whose ends are special points.
    config.record_every = 97
    # The full-batch gradient and Hessian of the second relation at every record; or not at all.
    config.second_relation = True
    # Losses and accuracies on all the data at every n-th record.
    config.evaluate_every = 5
    config.divergence_factor = 1e3
    config.seed = 0
    return config
