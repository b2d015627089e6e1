"""The command `mvg`.

Exit codes: 0 done, 1 a defect or a failed demo, 2 something is wrong with what was given, 130 interrupted.

Heavy packages are imported inside the commands, so that `mvg --help` answers at once.
"""

from mvg_core.cli.application import app, main

from mvg_core.cli import predict, weights, prompts  # isort: skip  # registers the commands, in the order of the help
from mvg_core.cli import data  # isort: skip
from mvg_core.cli import check_data  # isort: skip
from mvg_core.cli import evaluate  # isort: skip
from mvg_core.cli import finetune  # isort: skip
from mvg_core.cli import cohort  # isort: skip
from mvg_core.cli import serve  # isort: skip

__all__ = ["app", "check_data", "cohort", "data", "evaluate", "finetune", "main", "predict", "prompts", "serve",
           "weights"]
