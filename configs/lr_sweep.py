"""64 learning rates x 4 seeds of SGD with momentum: an MLP on digits, a minute on two cores."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # The data set (driftlab.data.names()), how many training examples (0: all), the label encoding:
    # classes, one_hot, binary (+-1; halves of the classes) or binary:a,b (two classes).
    config.data = "digits"
    config.train_size = 0
    config.normalization = "standard"
    config.labels = "one_hot"

    # The model (driftlab.models.names()) and its arguments, as key=value,key=value.
    config.model = "mlp"
    config.model_args = "widths=(64,),activation='relu'"
    # cross_entropy, squared_error, logistic, or module:function of your own, apply -> loss.
    config.loss = "squared_error"

    # full_batch, with_replacement, shuffled_epochs or fixed_order.
    config.sampling = "shuffled_epochs"
    config.batch_size = 32

    # optax aliases or module:function, comma-separated: several make a static axis.
    config.optimizer = "sgd"
    config.optimizer_args = "momentum=0.9"
    config.learning_rates = "1e-3:10:64"
    config.seeds = "4"
    # Further lane axes of the optimiser's arguments: "weight_decay=1e-4:1e-1:4;b1=0.8,0.9".
    config.axes = ""

    config.steps = 4000
    config.record_every = 25
    # Whole-data losses and accuracies at every n-th record.
    config.evaluate_every = 4
    # A lane has diverged once its loss exceeds its first one by this many times.
    config.divergence_factor = 1e3
    config.seed = 0
    return config
