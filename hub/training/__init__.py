"""Training adapters, and measuring them.

data         files and templates          labels      class names and their ids
encoding     rows to token ids            options     what a run can be told
loop         transformers' Trainer        checkpoints what a run leaves to go on from
metrics      how good it is               evaluation  measuring: `evaluate`
keeping      putting back what a run must not change
learners     which adapters a run trains  run         puts them together: `train`
"""

from hub.training.evaluation import Evaluation, evaluate
from hub.training.run import TrainResult, train

__all__ = ["Evaluation", "TrainResult", "evaluate", "train"]
