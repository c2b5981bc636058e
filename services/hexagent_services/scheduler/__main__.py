"""`python -m hexagent_services.scheduler`"""

import sys

from hexagent.runtime.app import run_service
from hexagent_services.scheduler.app import main
from hexagent_services.scheduler.settings import SchedulerSettings

if __name__ == "__main__":
    sys.exit(run_service(main, SchedulerSettings))
