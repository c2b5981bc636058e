"""`python -m hexagent_services.gateway`."""

import sys

from hexagent.runtime.app import run_service
from hexagent_services.gateway.app import main
from hexagent_services.gateway.settings import GatewaySettings

if __name__ == "__main__":
    sys.exit(run_service(main, GatewaySettings))
