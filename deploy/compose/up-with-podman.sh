#!/usr/bin/env bash
# Builds the image, brings the compose stack up with podman, checks every service and runs a workflow; again after every
# container was killed, and after the stack was taken down and brought up on its data; then takes it down. See --help.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

work=${TMPDIR:-/tmp}/hexagent-podman
base=docker.io/library/python:3.11-slim-bookworm
suite=
cert=
engine_config=
isolated=
keep=
skip_build=
inner=

usage() {
    cat <<'END'
usage: deploy/compose/up-with-podman.sh [options]

  --base IMAGE        build on this image (default: docker.io/library/python:3.11-slim-bookworm)
  --debootstrap SUITE build on an image made with debootstrap, where no image registry can be reached: a Debian suite
                      with Python 3.11 or 3.12, such as bookworm (root)
  --cert FILE         CA certificates for pip in the build, where a proxy or mirror has its own
  --private-config    a containers.conf of its own instead of the machine's: runc, cgroupfs, netavark and lower limits,
                      for machines without systemd, with cgroups v1 or without CAP_SYS_RESOURCE
  --isolated          run in network and mount namespaces of its own: interfaces and firewall stay as they are (root)
  --keep              leave the stack running; not with --isolated
  --skip-build        use the image of the last run
  --work DIR          images and tools, kept between runs (default: hexagent-podman in the temporary folder)

Needs podman with netavark and aardvark-dns; podman-compose is installed into the work folder where it is missing.
END
}

while (($#)); do
    case $1 in
        --base) base=$2; shift 2 ;;
        --debootstrap) suite=$2; shift 2 ;;
        --cert) cert=$(realpath "$2"); shift 2 ;;
        --private-config) engine_config=private; shift ;;
        --isolated) isolated=yes; shift ;;
        --keep) keep=yes; shift ;;
        --skip-build) skip_build=yes; shift ;;
        --work) work=$2; shift 2 ;;
        --inner) inner=yes; shift ;; # used by the script itself: it is in its namespace
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
if [[ $isolated && $keep ]]; then
    echo "up-with-podman: the namespace of --isolated ends with the script, so --keep cannot hold there" >&2
    exit 2
fi

say() { printf '\n== %s\n' "$*"; }

configure() {
    mkdir -p "$work"
    work=$(cd "$work" && pwd)
    # Images and containers of its own: nothing of the machine's storage is seen or changed.
    cat >"$work/storage.conf" <<END
[storage]
driver = "${STORAGE_DRIVER:-overlay}"
graphroot = "$work/storage"
runroot = "$work/run"
END
    export CONTAINERS_STORAGE_CONF=$work/storage.conf
    [[ $engine_config ]] || return 0
    cat >"$work/containers.conf" <<END
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "$work/networks"
END
    export CONTAINERS_CONF=$work/containers.conf
}

debian_base() {
    base=localhost/hexagent-base:$suite
    podman image exists "$base" && return
    say "base image of Debian $suite"
    rm -rf "$work/rootfs"
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$work/rootfs" \
        >"$work/debootstrap.log" 2>&1 || { tail "$work/debootstrap.log" >&2; return 1; }
    rm -f "$work"/rootfs/var/cache/apt/archives/*.deb
    tar -C "$work/rootfs" -c . | podman import --quiet - "$base"
    rm -rf "$work/rootfs"
}

build() {
    say "image of the services"
    # The host's network, because a build may run where podman can set up none.
    local options=(--network=host --build-arg "BASE=$base")
    if [[ $cert ]]; then
        options+=(--volume "$cert:/run/pip-ca.crt:ro" --build-arg PIP_CERT=/run/pip-ca.crt)
    fi
    podman build "${options[@]}" --file "$root/deploy/docker/services.Dockerfile" \
        --tag localhost/hexagent-services:local "$root"
}

install_compose() {
    if ! command -v podman-compose >/dev/null && [[ ! -x $work/venv/bin/podman-compose ]]; then
        say "podman-compose"
        python3 -m venv "$work/venv"
        "$work/venv/bin/pip" install --quiet "podman-compose>=1.5,<2"
    fi
    PATH=$PATH:$work/venv/bin
}

compose() { podman-compose --file "$root/deploy/compose/compose.yaml" "$@"; }

container() { podman ps --all --quiet --filter "label=com.docker.compose.service=$1"; }

pid_of() { podman inspect --format '{{.State.Pid}}' "$(container "$1")"; }

restarted() { (($(podman inspect --format '{{.RestartCount}}' "$(container "$1")") > 0)) && (($(pid_of "$1") > 0)); }

# until_true SECONDS COMMAND...
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.5
    done
}

in_stack() { podman exec --interactive "$(container estimator)" "$@"; }

grpc_services=(dag-tracker:7400 scheduler:7401 estimator:7402 agent-a100:7403 agent-h100:7404 agent-h200:7405 gateway:7406)

# By name over the stack's network, then each container's own health check, then the ports this machine sees.
check() {
    say "health"
    until_true 60 in_stack true 2>"$work/exec.log" || { cat "$work/exec.log" >&2; return 1; }
    in_stack python -m hexagent.runtime.check_health --wait 120 "${grpc_services[@]}"
    local service port
    for service in nats "${grpc_services[@]%:*}"; do
        podman healthcheck run "$(container "$service")" >/dev/null || { echo "$service is unhealthy" >&2; return 1; }
    done
    for port in 4222 "${grpc_services[@]#*:}"; do
        timeout 5 bash -c "exec 3<>/dev/tcp/127.0.0.1/$port" || { echo "port $port is not published" >&2; return 1; }
    done
    echo "healthy: nats ${grpc_services[*]%:*}"
    podman logs "$(container publish-cluster)"
}

workflow() {
    say "a workflow"
    in_stack python - dag-tracker:7400 <"$root/deploy/compose/smoke.py"
}

# As a crash: podman does not know who did it, so restart policies have to bring the containers back. NATS first and
# alone, because podman gives up on a container whose dependency is not running at that moment.
crash() {
    say "kill -9 of nats, then of every other service at once"
    kill_and_await nats
    kill_and_await "${grpc_services[@]%:*}"
}

kill_and_await() {
    local service pids=()
    for service in "$@"; do pids+=("$(pid_of "$service")"); done
    kill -KILL "${pids[@]}"
    for service in "$@"; do
        until_true 60 restarted "$service" || { echo "$service was not started again" >&2; return 1; }
    done
}

take_down() {
    local status=$?
    if ((status)); then
        for service in nats publish-cluster "${grpc_services[@]%:*}"; do
            say "the end of $service's log"
            podman logs --tail 15 "$(container "$service")" 2>&1 || true
        done
    fi
    say "down"
    compose down --volumes >"$work/down.log" 2>&1 || { cat "$work/down.log" >&2; status=1; }
    exit "$status"
}

run_stack() {
    [[ $keep ]] || trap take_down EXIT
    say "up"
    compose up --detach --no-build
    check
    workflow
    crash
    check
    workflow
    say "down and up again, on the same data"
    compose down >"$work/down.log" 2>&1
    compose up --detach --no-build
    check
    workflow
    say "everything works"
}

configure
install_compose
if [[ ! $inner && ! $skip_build ]]; then
    [[ ! $suite ]] || debian_base
    build
fi
if [[ $isolated && ! $inner ]]; then
    options=(--inner --work "$work")
    [[ ! $engine_config ]] || options+=(--private-config)
    # Runtime state is private too: podman's would name processes and networks of namespaces that are gone.
    mkdir -p "$work/run"
    # shellcheck disable=SC2016 # expanded inside
    prepare='mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs "$0" && ip link set lo up && exec "$@"'
    exec unshare --net --mount -- sh -c "$prepare" "$work/run" "${BASH_SOURCE[0]}" "${options[@]}"
fi
run_stack
