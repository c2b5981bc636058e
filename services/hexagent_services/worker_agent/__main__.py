"""`python -m hexagent_services.worker_agent`"""

import sys

from hexagent.runtime.app import run_service
from hexagent_services.worker_agent.app import main
from hexagent_services.worker_agent.settings import WorkerAgentSettings

if __name__ == "__main__":
    sys.exit(run_service(main, WorkerAgentSettings))
