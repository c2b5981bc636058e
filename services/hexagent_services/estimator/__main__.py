"""`python -m hexagent_services.estimator`"""

import sys

from hexagent.runtime.app import run_service
from hexagent_services.estimator.app import main
from hexagent_services.estimator.settings import EstimatorSettings

if __name__ == "__main__":
    sys.exit(run_service(main, EstimatorSettings))
