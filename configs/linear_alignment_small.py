"""The same in under two minutes: digits of 8 x 8 pixels, fewer rates and steps."""

import ml_collections

from configs import linear_alignment


def get_config() -> ml_collections.ConfigDict:
    config = linear_alignment.get_config()
    config.learning_rates = "0.3,1,3"
    config.seeds = "1"
    config.records = 50
    config.plane_steps = 10000
    config.data = "digits"
    config.train_size = 100
    config.images_widths = "8,8,8"
    config.images_steps = 3000
    config.flow_length = 6.0
    config.flow_records = 30
    config.tolerances = "1e-3,1e-5,1e-7"
    config.drift_rates = "0.4,0.2,0.1"
    config.drift_time = 8.0
    config.drift_problems = "plane"
    config.drift_dynamics = "gradient_descent,gradient_flow,modified_flow,heavy_ball,adam"
    cnn = {
        "data": "digits",
        "model_args": "channels=(8, 16), dense_widths=(64, 32), initialization='lecun_uniform', "
        "scale=0.57735026919",
        "learning_rates": "0.1",
        "seeds": "1",
        "steps": 300,
        "records": 20,
    }
    config.update({"cnn": cnn})
    return config
