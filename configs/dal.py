"""DAL and fixed rates, with and without momentum: an MLP on 1,000 images of mnist5k."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # What is trained, as in configs/lr_sweep.py.
    config.data = "mnist5k"
    config.train_size = 1000
    config.normalization = "unit"
    config.labels = "classes"
    config.model = "mlp"
    config.model_args = "widths=(64,64),activation='relu',initialization='he_normal'"
    config.loss = "cross_entropy"

    # The rates that DAL is compared with.
    config.learning_rates = "0.01,0.05,0.2,0.5,1,2"
    # DAL(p): the rate is min(constant / v^p, cap).
    config.constant = 2.0
    config.powers = "0.5,0.75,1"
    config.max_learning_rates = "1,5,20"
    # The cap of the claims, that of the paper; it must be one of them.
    config.reference_cap = 5.0
    # hvp or finite_difference.
    config.method = "hvp"
    # 0 is none.
    config.momentum = "0,0.9"
    config.seeds = "2"

    # Iterations on all examples at once; 0 leaves it out.
    config.steps = 200
    # Iterations on mini-batches, and how these are drawn; 0 leaves it out.
    config.mini_batch_steps = 800
    config.sampling = "shuffled_epochs"
    config.batch_size = 64

    config.record_every = 1
    # Loss and accuracy on all the data at every n-th record.
    config.evaluate_every = 25
    # The sharpness likewise, and its examples at once; 0 for all of them.
    config.curvature_every = 25
    config.curvature_batch_size = 0
    config.divergence_factor = 1e3
    config.seed = 0
    return config
