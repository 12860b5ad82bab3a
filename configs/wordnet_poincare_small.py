"""WordNet's mammals in 5 dimensions in the setting of Nickel and Kiela: two minutes."""

import ml_collections

from configs import wordnet_poincare


def get_config() -> ml_collections.ConfigDict:
    config = wordnet_poincare.get_config()
    config.relations = "mammals"
    config.batch_size = 10
    config.reduction = "mean"
    config.negatives = 50
    config.burn_in_epochs = 20
    config.optimizers = "rsgd,radam"
    config.learning_rates = "0.01,0.1,0.3,1.0"
    config.epochs = 280
    config.record_epochs = 10
    config.ranked_things = 0
    config.probed_pairs = 0
    config.disc_epochs = 200
    return config
