"""Logistic regression and a narrow ReLU network on the 4,000 training images of mnist5k."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # As in configs/lr_sweep.py.
    config.data = "mnist5k"
    config.train_size = 0
    config.normalization = "unit"
    config.labels = "classes"
    config.loss = "cross_entropy"
    config.sampling = "shuffled_epochs"
    config.batch_size = 128

    # What is trained, each described by a field of that name.
    config.networks = "logistic,network"
    config.logistic = ml_collections.ConfigDict()
    config.logistic.model = "mlp"
    config.logistic.model_args = "widths=()"
    config.logistic.epochs = 50
    # The paper's has 1,000 hidden units and 50 epochs.
    config.network = ml_collections.ConfigDict()
    config.network.model = "mlp"
    config.network.model_args = "widths=(32,),activation='relu',initialization='he_normal'"
    config.network.epochs = 10

    # Which; "scalar" is one scale a tensor, as in the public PyTorch ports.
    config.optimizers = (
        "uniform,incremental,exponential,uniform scalar,incremental scalar,exponential scalar,"
        "adam,amsgrad,sgd"
    )
    # A2Grad. The paper's grid is L 0.1, 1, 10 and beta 10, 50, 100, 1000.
    config.lipschitz = "0.1,1,10"
    config.beta = "0.1,1,10,100"
    # rho of the exponential variant, which the paper does not state.
    config.decay = 0.9
    # Adam and AMSGrad. The paper's grid is the whole decades.
    config.learning_rates = "1e-4:1e-1:7"
    config.b2 = "0.99,0.999"
    # SGD.
    config.sgd_learning_rates = "1e-3:1:7"
    config.momentum = "0.5,0.9"
    # Initialisations and batches; the paper averages over 5.
    config.seeds = "1"

    # Iterations of every network and those of a record; 0: what the epochs say.
    config.steps = 0
    config.record_every = 0
    config.epochs_per_record = 1
    # Records from one evaluation of A2Grad's averages to the next; y is evaluated at all of them.
    config.average_every = 5
    config.divergence_factor = 1e3
    config.seed = 0
    return config
