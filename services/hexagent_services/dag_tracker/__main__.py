"""`python -m hexagent_services.dag_tracker`."""

import sys

from hexagent.runtime.app import run_service
from hexagent_services.dag_tracker.app import main
from hexagent_services.dag_tracker.settings import TrackerSettings

if __name__ == "__main__":
    sys.exit(run_service(main, TrackerSettings))
