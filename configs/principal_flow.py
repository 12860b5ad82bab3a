"""Five learning rates of gradient descent on 300 digits, a tanh network 64-24-10: minutes."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # As in configs/lr_sweep.py. Every step takes the full batch.
    config.data = "digits"
    config.train_size = 300
    config.normalization = "per_feature"
    config.labels = "one_hot"
    config.model = "mlp"
    config.model_args = "widths=(24,),activation='tanh',scale=0.7"
    config.loss = "squared_error"

    config.learning_rates = "0.1,0.2,0.3,0.4,0.5"
    config.seeds = "1"
    config.steps = 1350
    # An odd number: on the edge iterates alternate, and an even one would see one side only.
    config.record_every = 9
    # The errors of one step of every flow, at every n-th record.
    config.errors_every = 15
    # Eigendirections, and Hessian-vector products for the rest.
    config.top = 2
    config.products = 12
    # linearized, or holomorphic for networks made of analytic functions.
    config.continuation = "linearized"

    # One step from a trained network displaced along the top eigenvector: trained at this learning
    # rate, for this long, then displaced until the gradient has this share there.
    config.displaced_learning_rate = 0.2
    config.displaced_steps = 4000
    config.displaced_share = 0.98
    # h lambda_1 of the steps: start:stop:count (log-spaced) or a comma list.
    config.displaced_scaled = "0.2,0.5,0.8,1.2,1.33,1.6,1.9,2.3"
    config.divergence_factor = 1e3
    config.seed = 0
    return config
