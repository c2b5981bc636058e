"""Whether servers are ready: `python -m hexagent.runtime.check_health [--wait SECONDS] ADDRESS...`.

An address is `HOST:PORT` of a gRPC server with the standard health service, or an `http://` URL that answers 200.
Exit status 0 where all are ready, else 1 with a line for each that is not. For health checks of containers, which
start it every few seconds: it imports nothing of ours.
"""

import argparse
import sys
import time
import urllib.error
import urllib.request
from typing import Final

import grpc
from grpc_health.v1 import health_pb2

ANSWER_S: Final = 2.0  # one server's answer
POLL_S: Final = 0.5

# A proxy named in the environment is for the way out of the house; what is checked here is inside.
_OPTIONS: Final = (("grpc.enable_http_proxy", 0),)
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def problem_of(address: str, answer_s: float = ANSWER_S) -> str:
    """Why the server is not ready; "" where it is."""
    if address.startswith("http://"):
        return _http_problem(address, answer_s)
    return _grpc_problem(address, answer_s)


def problems_of(addresses: list[str], wait_s: float = 0.0) -> dict[str, str]:
    """Of the servers that are not ready after `wait_s` seconds of trying, why."""
    end_s = time.monotonic() + wait_s
    left = dict.fromkeys(addresses, "")
    while True:
        left = {address: problem for address in left if (problem := problem_of(address))}
        if not left or time.monotonic() >= end_s:
            return left
        time.sleep(POLL_S)


def _grpc_problem(address: str, answer_s: float) -> str:
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest(), timeout=answer_s)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def _http_problem(url: str, answer_s: float) -> str:
    try:
        with _OPENER.open(url, timeout=answer_s) as answer:
            return "" if answer.status == 200 else f"status {answer.status}"
    except (urllib.error.URLError, OSError) as error:
        return str(error)


def main(arguments: list[str]) -> int:
    """What the exit status of the program is."""
    parser = argparse.ArgumentParser(prog="check_health", description="Whether servers are ready.")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="try for so long (default: once)")
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS", help="HOST:PORT of gRPC, or an http:// URL")
    options = parser.parse_args(arguments)
    problems = problems_of(options.addresses, options.wait)
    for address, problem in problems.items():
        print(f"{address}: not ready: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
