# shellcheck shell=bash
# RabbitMQ for the tests: single brokers and a cluster of three nodes, each of either version. Sourced by
# tests/services.sh, whose variables and tools it uses.
#
#   broker        the machine's package rabbitmq-server (3.10 on Debian 12)
#   broker4       4.x, unpacked into target/rabbitmq-4 from the packages of Debian's next release
#   node1 .. 3    a cluster of the version in TEST_CLUSTER_RABBITMQ: `4` (default) or `installed`; TEST_CLUSTER_CONF
#                 is a line of rabbitmq.conf for each node
#
# Each has four ports in a row: port mapper, Erlang distribution, AMQP, HTTP API.

# Where 4.x is unpacked, and the Debian release that has it.
rabbitmq4=$root/target/rabbitmq-4
rabbitmq4_release=trixie
# Of that release's packages, these are unpacked: the server, Erlang, and what both are linked with.
rabbitmq4_packages='^(rabbitmq-server|erlang-.*|patchelf|libc6|libgcc-s1|libstdc\+\+6|libtinfo6|zlib1g|libssl3t64|libsystemd0|libcap2|libzstd1)$'
cluster_nodes=(node1 node2 node3)

# port NAME OFFSET
port() {
    case "$1" in
    broker) echo $((ports + $2)) ;;
    broker4) echo $((ports + 4 + $2)) ;;
    node[123]) echo $((ports + 4 + 4 * ${1#node} + $2)) ;;
    esac
}

version_of() {
    case "$1" in
    broker4) echo 4 ;;
    node*) echo "${TEST_CLUSTER_RABBITMQ:-4}" ;;
    *) echo installed ;;
    esac
}

# --- single brokers ---

# broker_up NAME SUFFIX: starts a broker and exports its variables, their names ending with SUFFIX.
broker_up() {
    local name=$1 suffix=$2
    services_prepare
    broker_prepare "$name"
    # shellcheck disable=SC2016 # the script expands these, not this function
    script "rabbitmqctl-$name" 'rabbitmq_run '"$name"' rabbitmqctl "$@"'
    script "$name-control" "control $name"' "$@"'
    broker_start "$name"
    export "AMQP_URL$suffix=amqp://guest:guest@127.0.0.1:$(port "$name" 2)/%2f"
    export "RABBITMQCTL$suffix=$services/rabbitmqctl-$name" "TEST_BROKER$suffix=$services/$name-control"
    export "MANAGEMENT_URL$suffix=http://guest:guest@127.0.0.1:$(port "$name" 3)"
    say "RabbitMQ: $(rabbitmq_run "$name" rabbitmqctl version) at 127.0.0.1:$(port "$name" 2)"
}

# Makes the folder and the settings of a broker.
broker_prepare() {
    local home=$data/$1
    mkdir -p "$home"
    ln -sfn "$home" "$services/$1"
    printf 'listeners.tcp.local = 127.0.0.1:%s\n' "$(port "$1" 2)" >"$home/rabbitmq.conf"
    # The HTTP API is for the shell example; its statistics would cost time.
    echo '[rabbitmq_management].' >"$home/enabled_plugins"
    printf '%s\n' '[{rabbitmq_management_agent, [{disable_metrics_collector, true}]},' \
        " {rabbitmq_management, [{listener, [{ip, \"127.0.0.1\"}, {port, $(port "$1" 3)}]}]}]." \
        >"$home/advanced.config"
    # Empty, instead of the machine's settings.
    : >"$home/env.conf"
}

# A clean environment, without settings for another broker of the machine.
broker_environment() {
    local name=$1 home=$services/$1 loopback='-kernel inet_dist_use_interface {127,0,0,1}'
    local path=$PATH
    rabbitmq=/usr/lib/rabbitmq/bin
    if [[ $(version_of "$name") == 4 ]]; then
        rabbitmq=$rabbitmq4/usr/lib/rabbitmq/bin path=$rabbitmq4/usr/lib/erlang/bin:$path
    fi
    broker_environment=(env -i "PATH=$path" LC_ALL=C.UTF-8
        "HOME=$home" # where Erlang keeps the cookie
        ERL_EPMD_ADDRESS=127.0.0.1 "ERL_EPMD_PORT=$(port "$name" 0)"
        "RABBITMQ_NODENAME=$(node_name "$name")"
        "RABBITMQ_DIST_PORT=$(port "$name" 1)"
        "RABBITMQ_CONF_ENV_FILE=$home/env.conf"
        "RABBITMQ_CONFIG_FILE=$home/rabbitmq.conf"
        "RABBITMQ_CONFIG_FILES=$home/conf.d"
        "RABBITMQ_ADVANCED_CONFIG_FILE=$home/advanced.config"
        "RABBITMQ_ENABLED_PLUGINS_FILE=$home/enabled_plugins"
        "RABBITMQ_MNESIA_BASE=$home/data"
        "RABBITMQ_LOG_BASE=$services/log/$name"
        # Only this makes the start script exec the server instead of waiting for it, so that there is one process
        # to stop; -noinput then disables the input.
        RABBITMQ_ALLOW_INPUT=true
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-noinput $loopback"
        "RABBITMQ_CTL_ERL_ARGS=$loopback"
        # Eleven ports by default, shared with every other rabbitmqctl on the machine.
        RABBITMQ_CTL_DIST_PORT_MIN=30000 RABBITMQ_CTL_DIST_PORT_MAX=32000)
}

node_name() {
    case "$1" in
    node*) echo "muster-$ports-$1@localhost" ;;
    *) echo "muster-$(port "$1" 0)@localhost" ;;
    esac
}

# rabbitmq_run NAME PROGRAM ARGUMENT...: one of RabbitMQ's own programs, for that broker.
rabbitmq_run() {
    local name=$1 program=$2
    shift 2
    broker_environment "$name"
    "${broker_environment[@]}" "$rabbitmq/$program" "$@"
}

broker_start() {
    local name=$1
    broker_launch "$name"
    broker_await "$name"
}

broker_launch() {
    local name=$1
    broker_environment "$name"
    # The Erlang port mapper outlives the broker's stops, as in production. One that Erlang starts itself would be a
    # daemon that is never stopped. A cluster has its own.
    if [[ $name != node* ]]; then
        alive "epmd-$name" || launch "epmd-$name" "${broker_environment[@]}" \
            epmd -address 127.0.0.1 -port "$(port "$name" 0)"
    fi
    alive "$name" || launch "$name" "${broker_environment[@]}" "$rabbitmq/rabbitmq-server"
}

broker_await() {
    await_port "$1" "$(port "$1" 2)"
    rabbitmq_run "$1" rabbitmqctl await_startup --timeout 60 >>"$services/log/$1.out" 2>&1 ||
        fail_with_log "$1" "is not ready"
}

# --- a cluster ---

# Exports AMQP_CLUSTER_URLS and MANAGEMENT_CLUSTER_URLS (separated by spaces) and TEST_CLUSTER, a program:
#
#   start | stop | kill | freeze | thaw NODE   its process: stop is graceful, freeze is SIGSTOP
#   cut NODE | heal                            the connections between that node and the others
#   wipe NODE                                  removes the data of a node that does not run
#   run NODE PROGRAM ARGUMENT...               rabbitmqctl, rabbitmq-queues, rabbitmq-upgrade ... on that node
cluster_start() {
    local name amqp=() http=() known=() wires=()
    services_prepare
    mkdir -p "$data/cluster"
    (umask 077 && head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$data/cluster/cookie")
    for name in "${cluster_nodes[@]}"; do
        known+=("$(node_name "$name")")
        wires+=("$(node_name "$name"):$(port "$name" 0):$(port "$name" 1)")
        amqp+=("amqp://guest:guest@127.0.0.1:$(port "$name" 2)/%2f")
        http+=("http://guest:guest@127.0.0.1:$(port "$name" 3)")
    done
    launch wires python3 "$root/tests/services/wires.py" $((ports + 21)) "${wires[@]}"
    await_port wires $((ports + 21))
    for name in "${cluster_nodes[@]}"; do
        node_prepare "$name"
        broker_launch "$name"
    done
    for name in "${cluster_nodes[@]}"; do broker_await "$name"; done
    script cluster-control 'cluster_control "$@"'
    export AMQP_CLUSTER_URLS="${amqp[*]}" MANAGEMENT_CLUSTER_URLS="${http[*]}"
    export TEST_CLUSTER=$services/cluster-control
    say "RabbitMQ cluster: $(rabbitmq_run node1 rabbitmqctl version), ${#cluster_nodes[@]} nodes"
}

# A node's settings, and the cookie that all share. `known` are the names of all nodes.
node_prepare() {
    local home=$data/$1 n
    broker_prepare "$1"
    cp -f "$data/cluster/cookie" "$home/.erlang.cookie"
    chmod 400 "$home/.erlang.cookie"
    {
        # As in docs/cluster.md.
        echo 'cluster_partition_handling = pause_minority'
        echo 'cluster_formation.peer_discovery_backend = classic_config'
        for n in "${!known[@]}"; do
            echo "cluster_formation.classic_config.nodes.$((n + 1)) = ${known[n]}"
        done
        echo "${TEST_CLUSTER_CONF:-}"
    } >>"$home/rabbitmq.conf"
}

cluster_stop() {
    local name
    for name in "${cluster_nodes[@]}" wires; do halt "$name" KILL; done
}

cluster_control() {
    local verb=$1 name=${2:-}
    case "$verb" in
    start) broker_start "$name" ;;
    launch) broker_launch "$name" ;;
    stop) halt "$name" TERM ;;
    kill) halt "$name" KILL ;;
    freeze) kill -s STOP "$(<"$services/$name.pid")" ;;
    thaw) kill -s CONT "$(<"$services/$name.pid")" ;;
    cut) wires "cut $(node_name "$name")" ;;
    heal) wires heal ;;
    wipe) rm -rf "${services:?}/$name/data" ;;
    name) node_name "$name" ;;
    run) rabbitmq_run "$name" "${@:3}" ;;
    *) fail "no such verb: '$verb' (see tests/services/rabbitmq.sh)" ;;
    esac
}

# Controls the proxy between the nodes.
wires() {
    local reply
    exec 3<>"/dev/tcp/127.0.0.1/$((ports + 21))"
    echo "$1" >&3
    read -r reply <&3
    exec 3>&-
    [[ $reply == done ]] || fail "wires: $reply"
}

# --- the programs ---

broker_install() {
    [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]] || apt_install rabbitmq-server AMQP_URL
    [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]] ||
        fail "no /usr/lib/rabbitmq/bin/rabbitmq-server: give AMQP_URL instead"
}

# Unpacks 4.x without installing it: needs no root and changes nothing on the machine. Returns 1 if its packages are not
# available.
rabbitmq4_install() {
    local lock
    mkdir -p "$root/target"
    # Two runs in one folder unpack it once.
    exec {lock}>"$rabbitmq4.lock"
    flock "$lock"
    local status=0
    rabbitmq4_is_there || rabbitmq4_unpack || status=1
    exec {lock}>&-
    return "$status"
}

# The programs contain their path, so a moved folder is made again.
rabbitmq4_is_there() {
    [[ $(cat "$rabbitmq4/made" 2>/dev/null) == "$rabbitmq4" ]]
}

rabbitmq4_unpack() {
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror package names=()
    command -v apt-get >/dev/null || { say "RabbitMQ 4: no apt-get"; return 1; }
    [[ -r $keyring ]] || { say "RabbitMQ 4: no $keyring (Debian's package debian-archive-keyring)"; return 1; }
    say "unpacking RabbitMQ 4 into target/rabbitmq-4"
    rm -rf "$rabbitmq4"
    mkdir -p "$rabbitmq4/apt/state/lists/partial" "$rabbitmq4/apt/cache/archives/partial" "$rabbitmq4/apt/debs"
    # Separate lists and status, independent of the machine's packages.
    : >"$rabbitmq4/apt/status"
    local apt=(-qq -o "Dir::Etc::SourceList=$rabbitmq4/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State=$rabbitmq4/apt/state" -o "Dir::State::status=$rabbitmq4/apt/status"
        -o "Dir::Cache=$rabbitmq4/apt/cache" -o "APT::Sandbox::User=$(id -un)"
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o Acquire::Retries=3)
    # The machine's Debian mirror.
    mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' |
        sed -n 's/^Debian //p' | sort -u | head -n 1)
    [[ -n $mirror ]] || { say "RabbitMQ 4: no Debian mirror among this machine's sources (apt-get update)"; return 1; }
    echo "deb [signed-by=$keyring] $mirror $rabbitmq4_release main" >"$rabbitmq4/apt/sources.list"
    apt-get "${apt[@]}" -o APT::Update::Error-Mode=any update >&2 ||
        { say "RabbitMQ 4: no list of $rabbitmq4_release's packages"; return 1; }
    while read -r package; do names+=("$package"); done < <(
        apt-get "${apt[@]}" -s --no-install-recommends install rabbitmq-server patchelf |
            sed -n 's/^Inst \([^ ]*\) .*/\1/p' | grep -E "$rabbitmq4_packages"
    )
    # apt-get downloads into the current folder.
    (cd "$rabbitmq4/apt/debs" && ((${#names[@]})) && apt-get "${apt[@]}" download "${names[@]}" >&2) ||
        { say "RabbitMQ 4: downloading its packages failed"; return 1; }
    for package in "$rabbitmq4"/apt/debs/*.deb; do
        dpkg-deb --fsys-tarfile "$package" |
            tar -x -C "$rabbitmq4" --no-same-owner --exclude=./usr/share/doc --exclude=./usr/share/man ||
            { say "RabbitMQ 4: $package cannot be unpacked"; return 1; }
    done
    rm -rf "$rabbitmq4/apt"
    rabbitmq4_relocate || { say "RabbitMQ 4: the unpacked server does not run"; return 1; }
    echo "$rabbitmq4" >"$rabbitmq4/made"
}

# Erlang's programs get the loader and the libraries that were unpacked with them: this machine's may be older.
rabbitmq4_relocate() {
    local loader libraries erlang=$rabbitmq4/usr/lib/erlang program
    loader=$(find "$rabbitmq4/usr/lib" -name 'ld-linux*.so*' | head -n 1)
    libraries=$(dirname "$(find "$rabbitmq4/usr/lib" -name libc.so.6 | head -n 1)")
    local patchelf=("$loader" --library-path "$libraries" "$rabbitmq4/usr/bin/patchelf")
    while read -r program; do
        # What has no loader is a script or a library. RPATH, unlike RUNPATH, is in force for libraries too.
        "${patchelf[@]}" --print-interpreter "$program" >/dev/null 2>&1 || continue
        "${patchelf[@]}" --set-interpreter "$loader" --force-rpath --set-rpath "$libraries" "$program" || return
    done < <(find "$erlang" -path '*/bin/*' -type f -perm -u+x)
    sed -i "s|ROOTDIR=/usr/lib/erlang|ROOTDIR=$erlang|" "$erlang"/bin/erl "$erlang"/bin/start \
        "$erlang"/erts-*/bin/erl "$erlang"/erts-*/bin/start 2>/dev/null
    "$erlang/bin/erl" -noshell -eval 'crypto:strong_rand_bytes(1), halt().' >&2
}
