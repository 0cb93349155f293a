# shellcheck shell=bash
# The services the tests talk to: RabbitMQ (tests/services/rabbitmq.sh) and a server of the MongoDB protocol,
# private to one run: own data, own free ports, loopback only. They do not affect running ones.
#
# Sourced by tests/run, which calls services_start and services_stop, and by the small scripts written
# for the tests below. On start it exports:
#
#   AMQP_URL, MONGODB_URL      the services; if set beforehand, that service is not started
#   RABBITMQCTL         rabbitmqctl for the private broker
#   MANAGEMENT_URL      the HTTP API of the private broker
#   EXAMPLES_PYTHON, EXAMPLES_NODE_PATH   a Python with pika, a folder of Node packages with amqplib
#   TEST_BROKER         `start`, `stop` (graceful) or `kill` the broker's process
#   AMQP_URL_4 and so on           the same for RabbitMQ 4 (rabbitmq4_start)
#   AMQP_CLUSTER_URLS, TEST_CLUSTER ...   three nodes (cluster_start)
#   TEST_STORE          `start` or `stop` the store's process (stop is a kill: a store that crashes)
#   TEST_STORE_PROGRAM  the store's program, for a test that starts one with settings of its own
#   TEST_PYTHON         a Python with PyJWT, to verify tokens with an independent implementation
#   TEST_CHROMEDRIVER   the driver of a headless Chromium, for the pages
#   TEST_AXE            axe-core's script, which checks their accessibility
#   TEST_SCHEMAS        a folder with check-jsonschema and kubernetes-validate, which bring published schemas
#   TEST_PROMETHEUS, TEST_PROMTOOL   Prometheus, which a test starts itself, and its checks
#   TEST_OPENAPI        a folder of programs for the OpenAPI document: validator, tester, generator
#
# Variables of a service exist only if the script started it. Start and stop keep port and data.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/target/venv
# GPL: tests run it as a program; it is never linked or shipped.
secantus=0.6.0b17
# Client libraries for the examples of docs/amqp.md.
pika=1.4.4 amqplib=2.3.1
node=$root/target/node
# Verifies tokens independently.
pyjwt=2.10.1
# Checks accessibility.
axe=4.14.1
# Schemas of compose files, workflows and Kubernetes' objects, included for offline use.
schemas=(check-jsonschema==0.39.0 kubernetes-validate==1.37.0)
# Validate the OpenAPI document, test muster against it, and generate a client from it.
openapi=(openapi-spec-validator==0.9.0 schemathesis==4.32.5 openapi-python-client==0.29.1)
# shellcheck source-path=SCRIPTDIR
. "$root/tests/services/rabbitmq.sh"
# This run's folder and the first of its ports; set by services_prepare.
services='' ports=''
# Where both services keep their data: a temporary folder, which a run may have put into memory.
data=''

say() { printf '== %s\n' "$*" >&2; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# left_out WHAT: listed at the end of the run, or a failure where everything is required.
left_out() {
    [[ ${TEST_SERVICES:-} != required ]] || fail "left out: $1"
    say "left out: $1"
    [[ -z ${TEST_LEFT_OUT:-} ]] || echo "$1" >>"$TEST_LEFT_OUT"
}

# --- start and stop everything ---

services_start() {
    if [[ -n ${AMQP_URL:-} ]]; then
        say "RabbitMQ: the one in AMQP_URL"
    elif [[ ${TEST_RABBITMQ:-} == 4 ]]; then
        rabbitmq4_install || fail "RabbitMQ 4 is not available"
        broker_up broker4 ''
    else
        broker_install
        broker_up broker ''
    fi

    if [[ -n ${MONGODB_URL:-} ]]; then
        say "MongoDB: the one in MONGODB_URL"
    else
        store_install
        services_prepare
        store_start
        # A direct connection, so that a test can put a proxy in front: the server calls itself a
        # replica set (majority writes work), and a client that follows the set's own list of
        # addresses would go round the proxy.
        export MONGODB_URL="mongodb://127.0.0.1:$((ports + 20))/?directConnection=true"
        export TEST_STORE=$services/store-control TEST_STORE_PROGRAM=$venv/bin/secantusd-rs
        say "MongoDB: SecantusDB $secantus at $MONGODB_URL"
    fi

    examples_install
    if [[ -z ${TEST_PYTHON:-} ]]; then
        python_packages venv-jwt TEST_PYTHON "PyJWT[crypto]==$pyjwt"
        export TEST_PYTHON=$venv-jwt/bin/python
    fi
    if [[ -z ${TEST_CHROMEDRIVER:-} ]]; then
        # Brings the browser with it, which it finds by itself.
        command -v chromedriver >/dev/null || apt_install chromium-driver TEST_CHROMEDRIVER
        TEST_CHROMEDRIVER=$(command -v chromedriver) || fail "no chromedriver: give TEST_CHROMEDRIVER"
        export TEST_CHROMEDRIVER
    fi
    [[ -n ${TEST_AXE:-} ]] || axe_install
    if [[ -z ${TEST_SCHEMAS:-} ]]; then
        python_packages venv-schemas TEST_SCHEMAS "${schemas[@]}"
        export TEST_SCHEMAS=$venv-schemas/bin
    fi
    if [[ -z ${TEST_OPENAPI:-} ]]; then
        python_packages venv-openapi TEST_OPENAPI "${openapi[@]}"
        export TEST_OPENAPI=$venv-openapi/bin
    fi
    prometheus_install
}

# The argument is the exit code of the run: after a failure, unlike after Ctrl-C, the logs are kept.
services_stop() {
    trap '' INT TERM HUP
    [[ -n ${services:-} ]] || return 0
    local name
    for name in "$services"/*.pid; do
        [[ -e $name ]] || continue
        name=${name##*/}
        halt "${name%.pid}" KILL
    done
    rm -rf "$data"
    if (($1 == 0 || $1 > 128)); then
        rm -rf "$services"
    else
        find "$services" -mindepth 1 -maxdepth 1 ! -name log -exec rm -rf {} +
        say "what the services logged: ${services#"$root"/}/log"
    fi
}

services_prepare() {
    [[ -z ${services:-} ]] || return 0
    mkdir -p "$root/target/services"
    services=$(mktemp -d "$root/target/services/XXXXXX")
    data=$(mktemp -d "${TMPDIR:-$services}/data.XXXXXX")
    mkdir "$services/log" "$data/store"
    ln -s "$data/store" "$services/"
    ports=$(free_ports)
    # Empty, in the place of the machine's own settings.
    : >"$services/store.toml"
    # shellcheck disable=SC2016 # the script expands these, not this function
    script store-control 'control store "$@"'
}

# script NAME BODY: a program for the tests, which knows this run's folder and ports.
script() {
    {
        echo '#!/usr/bin/env bash'
        echo 'set -euo pipefail'
        printf '. %q\n' "$root/tests/services.sh"
        printf 'services=%q ports=%q data=%q\n' "$services" "$ports" "$data"
        echo "$2"
    } >"$services/$1"
    chmod +x "$services/$1"
}

control() {
    case "$1 ${2:-}" in
    'store start') store_start ;;
    *' start') broker_start "$1" ;;
    'store stop' | *' kill') halt "$1" KILL ;;
    *' stop') halt "$1" TERM ;;
    *) fail "$1: no such verb: '${2:-}' (see tests/services.sh)" ;;
    esac
}

# --- the server of the MongoDB protocol ---

store_install() {
    local made=$venv/secantus-$secantus
    # The second look finds an environment that was moved together with the folder around it.
    [[ -e $made ]] && "$venv/bin/secantusd-rs" --version >/dev/null 2>&1 && return

    say "installing SecantusDB $secantus into target/venv"
    python_with_venv
    if "$python" -m venv --clear "$venv" &&
        "$venv/bin/pip" install --quiet --disable-pip-version-check "SecantusDB==$secantus" &&
        "$venv/bin/secantusd-rs" --version >/dev/null; then
        touch "$made"
    else
        fail "SecantusDB $secantus cannot be installed: give MONGODB_URL instead"
    fi
}

store_start() {
    # A majority write must survive the kill that tests stop it with: MongoDB's journal does that by
    # itself, here it has to be asked for. The server allocates a whole log file, by default 2 GB.
    alive store || launch store "$venv/bin/secantusd-rs" --config "$services/store.toml" \
        --host 127.0.0.1 --port $((ports + 20)) --storage-path "$services/store" \
        --log-level WARNING --sync-on-commit --log-file-max 64MB --cache-size 256MB
    await_port store $((ports + 20))
}

# --- the examples' client libraries ---

examples_install() {
    python_packages pika EXAMPLES_PYTHON "pika==$pika"
    export EXAMPLES_PYTHON=$root/target/pika/bin/python

    if ! command -v npm >/dev/null; then
        left_out "the example in JavaScript (no npm)"
        return
    fi
    if [[ ! -e $node/amqplib-$amqplib ]]; then
        say "installing amqplib $amqplib into target/node"
        mkdir -p "$node"
        npm install --prefix "$node" --silent --no-audit --no-fund --no-save "amqplib@$amqplib" >&2 ||
            fail "amqplib $amqplib cannot be installed"
        touch "$node/amqplib-$amqplib"
    fi
    export EXAMPLES_NODE_PATH=$node/node_modules
}

# --- axe-core ---

# In a folder of its own: npm removes what it was not asked for.
axe_install() {
    local script=$root/target/axe/node_modules/axe-core/axe.min.js
    if ! command -v npm >/dev/null; then
        left_out "the accessibility of the pages (no npm)"
        return
    fi
    if [[ ! -e $root/target/axe/axe-core-$axe ]]; then
        say "installing axe-core $axe into target/axe"
        mkdir -p "$root/target/axe"
        npm install --prefix "$root/target/axe" --silent --no-audit --no-fund --no-save "axe-core@$axe" >&2 ||
            fail "axe-core $axe cannot be installed"
        touch "$root/target/axe/axe-core-$axe"
    fi
    export TEST_AXE=$script
}

# --- Prometheus ---

prometheus_install() {
    [[ -z ${TEST_PROMETHEUS:-} || -z ${TEST_PROMTOOL:-} ]] || return 0
    [[ -x /usr/bin/prometheus ]] || apt_install prometheus "TEST_PROMETHEUS and TEST_PROMTOOL"
    export TEST_PROMETHEUS=${TEST_PROMETHEUS:-/usr/bin/prometheus}
    export TEST_PROMTOOL=${TEST_PROMTOOL:-/usr/bin/promtool}
}

# --- tools ---

# Sets `python` to one that can make virtual environments.
python_with_venv() {
    python=python3
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install python3-venv "AMQP_URL and MONGODB_URL, and run cargo test"
        python=/usr/bin/python3
    fi
}

# python_packages FOLDER VARIABLE PACKAGE...: a virtual environment in target/FOLDER with these packages.
# VARIABLE names what makes it unnecessary.
python_packages() {
    local folder=$root/target/$1 variable=$2
    shift 2
    # Its programs contain its path, so a moved one is made again.
    [[ -x $folder/bin/python && $(cat "$folder/made" 2>/dev/null) == "$folder $*" ]] && return

    say "installing $* into target/${folder##*/}"
    python_with_venv
    "$python" -m venv --clear "$folder" &&
        "$folder/bin/pip" install --quiet --disable-pip-version-check "$@" ||
        fail "$* cannot be installed: give $variable (see docs/development.md)"
    echo "$folder $*" >"$folder/made"
}

# apt_install PACKAGE URL: URL names the variable that makes the package unnecessary.
apt_install() {
    say "installing Debian's package $1"
    command -v apt-get >/dev/null || fail "$1 is missing, and there is no apt-get: install it, or give $2"
    # A broken package source may not matter; the next command fails if it does.
    as_root apt-get update -qq || true
    # Another program may be installing something just now.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "$1" >&2 ||
        fail "$1 cannot be installed: install it, or give $2"
}

as_root() {
    if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

# The first of 22 free ports in a row: four for each broker and node (see tests/services/rabbitmq.sh), the store,
# and the control of the cluster's connections. They lie below the range from which the
# system serves outgoing connections, so that none is gone when a stopped service comes back to it.
free_ports() {
    local first port
    while :; do
        first=$((20000 + RANDOM % 400 * 25))
        for ((port = first; port < first + 22; port++)); do
            accepts "$port" && continue 2
        done
        echo "$first"
        return
    done
}

accepts() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# launch NAME COMMAND...: in a session of its own, so that Ctrl-C reaches the tests alone and the
# services go last.
launch() {
    local name=$1
    shift
    setsid "$@" </dev/null >>"$services/log/$name.out" 2>&1 &
    echo $! >"$services/$name.pid"
    disown
}

# An ended process may stay as a zombie if its parent does not reap it, as in many containers.
alive() {
    local state
    [[ -e $services/$1.pid ]] || return 1
    state=$(cat "/proc/$(<"$services/$1.pid")/stat" 2>/dev/null) && [[ $state != *') Z '* ]]
}

# halt NAME SIGNAL: returns when the process is gone.
halt() {
    local tries=0
    while alive "$1"; do
        ((tries < 300)) || set -- "$1" KILL
        ((tries++ % 300)) || {
            kill -s "$2" "$(<"$services/$1.pid")" && kill -s CONT "$(<"$services/$1.pid")"
        } 2>/dev/null || true
        sleep 0.1
    done
    rm -f "$services/$1.pid"
}

await_port() {
    local tries
    for ((tries = 0; tries < 600; tries++)); do
        alive "$1" || fail_with_log "$1" "ended"
        accepts "$2" && return
        sleep 0.1
    done
    fail_with_log "$1" "does not listen on port $2"
}

fail_with_log() {
    say "the $1's last words:"
    find "$services/log" -path "$services/log/$1*" -type f -exec tail -n 25 {} + >&2
    fail "the test $1 $2"
}
