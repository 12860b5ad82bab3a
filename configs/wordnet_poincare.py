"""All nouns of WordNet in 5 dimensions; docs/results says how far an hour of CPU carries it."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # "nouns" or "mammals" of WordNet, or the path of an edge list: child<TAB>ancestor lines.
    config.relations = "nouns"
    # Whether an edge list is to be closed under transitivity first.
    config.closure = True
    # Share of all pairs held out for link prediction (of those that touch no leaf and no root);
    # 0 trains on all, for reconstruction.
    config.held_out = 0.0

    config.dimension = 5
    config.curvature = -1.0
    # Coordinates start uniformly in [-scale, scale].
    config.scale = 1e-3

    config.batch_size = 50
    # How the loss of a batch is reduced: sum or mean. It scales the learning rates of rsgd alone.
    config.reduction = "sum"
    config.negatives = 10
    # RSGD with the retraction at one rate for all lanes of a seed, negatives in proportion to
    # degree ** burn_in_power.
    config.burn_in_epochs = 5
    config.burn_in_learning_rate = 0.03
    config.burn_in_power = 0.75

    # rsgd, radagrad, radam, ramsgrad; each with these moves: retraction, exp.
    config.optimizers = "rsgd"
    config.moves = "retraction"
    config.b1 = 0.9
    config.b2 = 0.999
    config.learning_rates = "0.3,1.0"
    config.seeds = "1"

    # After the burn-in.
    config.epochs = 50
    config.record_epochs = 5
    # In iterations, where epochs are not wanted: 0 leaves it to the two above.
    config.steps = 0
    config.record_every = 0

    # Things whose relations are ranked at a record (0: all), pairs drawn once, with replacement,
    # whose loss is recorded (0: as many as are trained on).
    config.ranked_things = 500
    config.probed_pairs = 4096
    # At the end, the best lane of each method is ranked with all things.
    config.final_ranked_things = 0

    # Epochs of the 2-dimensional embedding that is drawn in the disc; 0 for none.
    config.disc_epochs = 0
    config.seed = 0
    return config
