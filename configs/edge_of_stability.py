"""Five optimisers and gradient flow on 1,000 MNIST digits, squared error: ten minutes or so."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # As in configs/lr_sweep.py. Every step takes the full batch.
    config.data = "mnist5k"
    config.train_size = 1000
    config.normalization = "unit"
    config.labels = "one_hot"
    config.model = "mlp"
    config.model_args = "widths=(64,64),activation='tanh',scale=0.7"
    config.loss = "squared_error"

    # Which of gradient_descent, heavy_ball, nesterov, rmsprop, adam; comma-separated.
    config.optimizers = "gradient_descent,heavy_ball,nesterov,rmsprop,adam"
    # The learning rates of each: start:stop:count (log-spaced) or a comma list.
    config.learning_rates = ml_collections.ConfigDict()
    config.learning_rates.gradient_descent = "0.03,0.05,0.07,0.1,0.2"
    config.learning_rates.heavy_ball = "0.05,0.1,0.15,0.2"
    config.learning_rates.nesterov = "0.03,0.05,0.07,0.1"
    config.learning_rates.rmsprop = "1e-4,2e-4,4e-4"
    config.learning_rates.adam = "5e-4,1e-3,2e-3"
    # Of heavy ball and Nesterov; of Adam; of Adam and RMSProp.
    config.momentum = 0.9
    config.b1 = 0.9
    config.b2 = 0.99
    config.eps = 1e-8
    config.seeds = "1"

    config.steps = 2000
    # An odd number: on the edge iterates alternate, and an even one would see one side only.
    config.record_every = 25
    # Of the eigenvalue's residual, and Hessian-vector products at once (0: all examples).
    config.tolerance = 1e-3
    config.curvature_batch_size = 0

    # Gradient flow is followed up to this time (0: not at all), in that many records. Iteration n
    # at learning rate h is time n h; with momentum b, n h / (1 - b).
    config.flow_time = 200.0
    config.flow_records = 200

    # A plateau holds if it is within this share of its threshold.
    config.accuracy = 0.1
    config.divergence_factor = 1e3
    config.seed = 0
    return config
