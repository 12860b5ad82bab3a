"""The spectrum of a small network on 2 to 10 classes of digits, two losses, 3 seeds."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # A data set, how many examples (0: all of the classes), and the numbers of classes: the first
    # C of them.
    config.data = "digits"
    config.train_size = 0
    config.normalization = "standard"
    config.classes = "2,4,6,8,10"

    config.model = "mlp"
    config.model_args = "widths=(32,32),activation='tanh'"
    # cross_entropy (C - 1 outliers are claimed), squared_error (C), or both.
    config.loss = "cross_entropy,squared_error"

    # SGD with momentum on shuffled batches; 0: the full batch.
    config.batch_size = 0
    config.momentum = 0.9
    config.learning_rates = "0.05"
    config.seeds = "3"
    config.steps = 100
    # Every record is a spectrum; the first after step 0 is the early one of the claim.
    config.record_every = 20

    # The top eigenvalues in which the gap is looked for, the same for every number of classes.
    config.eigenvalues = 16
    # Of the density: random vectors, and Lanczos steps each.
    config.probes = 4
    config.lanczos_steps = 60
    # Hessian-vector products of the other estimate of the trace.
    config.trace_products = 20
    config.seed = 0
    return config
