"""The paper's setting: 1000 points on the sphere, normal labels, widths 500 to 4000, 100 steps."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # sphere (examples points, uniform on the sphere of that dimension), or a data set.
    config.data = "sphere"
    config.examples = 1000
    config.dimension = 1000
    # Of a data set: two classes, and the normalisation before rows are scaled to norm 1.
    config.classes = "4,9"
    config.normalization = "standard"
    # normal, random (signs), or real (the two classes, of a data set): a comma list.
    config.labels = "normal"

    # descent, flow (gradient flow) or both_layers (descent on both layers): a comma list.
    config.trainings = "descent"
    config.widths = "500,1000,2000,4000"
    # For half the sum of squared errors; times 1 / lambda_max of the limit kernel of what is
    # trained, if scaled_rates: then 2 is the limit of stability.
    config.learning_rates = "0.5"
    config.scaled_rates = False
    config.seeds = "2"
    config.steps = 100
    config.record_every = 5
    # The kernel H(k) at every n-th record, and at the first and last.
    config.kernel_every = 20
    # Relative tolerance of the flow's solver: kinks of the rectifiers make a smaller one dear.
    config.flow_rtol = 1e-3
    # Above the limit of stability the loss may rise by about m before it falls.
    config.divergence_factor = 1e6
    config.seed = 0
    return config
