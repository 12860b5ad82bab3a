"""Every optax optimiser on five parameters; five chains on digits and mnist5k, both precisions."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Only the optimisers whose name has one of these parts in it; "" for all, "none" for none.
    config.optimizers = ""
    # Learning rates of the survey; each divides the two times.
    config.learning_rates = "0.008,0.004,0.002,0.001"
    # Slow time h n before the flow starts, and for which it follows.
    config.warm_time = 0.4
    config.time = 0.6

    # Whether to compare with the fields derived by hand.
    config.by_hand = True

    # The reference table: which networks ("" for none), how exact, how many terms at most.
    config.networks = "digits,mnist5k"
    config.precisions = "float64,float32"
    config.orders = 4
    config.digits_size = 500
    config.digits_hidden = 16
    config.mnist5k_size = 200
    config.mnist5k_hidden = 128
    return config
