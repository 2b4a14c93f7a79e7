# What the scripts of the services share: places, packages, processes, readiness, certificates.
# shellcheck shell=bash disable=SC2034
# Sourced, not run. A service writes below $SERVICES_DIR alone and listens on 127.0.0.1 alone.

: "${SERVICES_DIR:?the directory of the running services; tests/services/run makes one}"
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/wallaroo-connectors/services" # downloads, kept between runs
HOST=127.0.0.1
DEADLINE=120               # seconds until a service must take clients; a busy machine needs several times the usual 5
TLS="$SERVICES_DIR/tls"    # ca.pem, other-ca.pem, and NAME.pem with NAME.key: server, client, and other-client of other-ca

die() { echo "${0##*/}: $*" >&2; exit 1; }

# alone COMMAND…: one run at a time changes what all runs share: the packages and the downloads.
alone() {
    mkdir -p "$CACHE"
    (
        flock 9
        "$@" 9>&-
    ) 9>"$CACHE/lock"
}

# need COMMAND PACKAGE…: installs the packages unless the command is there.
need() {
    command -v "$1" >/dev/null || alone install_packages "$@"
}
install_packages() {
    local command=$1 root=() policy=/usr/sbin/policy-rc.d attempt
    shift
    [ "$(id -u)" -eq 0 ] || root=(sudo)
    command -v "${root[0]:-apt-get}" >/dev/null || die "please install: $*"
    # Debian starts a service when it is installed, unless this file refuses.
    if [ ! -e "$policy" ]; then
        trap '"${root[@]}" rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
        "${root[@]}" chmod 755 "$policy"
    fi
    # Another apt-get may take archives away between download and unpacking: try again.
    for attempt in 1 2 3; do
        ! "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -qq \
            install -y --no-install-recommends "$@" >&2 || break
        "${root[@]}" apt-get -o DPkg::Lock::Timeout=120 -qq update >&2 || true
    done
    command -v "$command" >/dev/null || die "could not install $*"
}

port_open() { (exec 3<>"/dev/tcp/$HOST/$1") 2>/dev/null; }

# running PIDFILE: does its process group live? Ended and not reaped (Z) does not count; with threads (Zl) it still
# holds its ports, and does.
running() {
    [ -s "$1" ] && ps -eo pgid=,stat= |
        awk -v group="$(cat "$1")" '$1 == group && ($2 !~ /^Z/ || $2 ~ /l/) { found = 1 } END { exit !found }'
}

# start PIDFILE LOG COMMAND…: in a process group of its own, with a fresh log.
start() {
    local pidfile=$1 log=$2
    shift 2
    setsid -- "$@" >"$log" 2>&1 </dev/null &
    echo $! >"$pidfile"
}

# wait_ready PIDFILE LOG COMMAND…: until the command succeeds; fails at once with the log's end when the process is gone.
wait_ready() {
    local pidfile=$1 log=$2 end=$((SECONDS + DEADLINE))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ! running "$pidfile" || [ "$SECONDS" -ge "$end" ]; then
            tail -n 30 "$log" >&2
            die "does not take clients; its log ends as above"
        fi
        sleep 0.05
    done
}

# signal NAME PIDFILE: to the whole group, if it lives.
signal() { ! running "$2" || kill -s "$1" -- "-$(cat "$2")" 2>/dev/null || true; }

# end NAME SECONDS PIDFILE: signals the group and waits; beyond the time it is killed.
end() {
    local end=$((SECONDS + $2))
    signal CONT "$3"
    signal "$1" "$3"
    while running "$3"; do
        [ "$SECONDS" -lt "$end" ] || signal KILL "$3"
        sleep 0.05
    done
    rm -f "$3"
}

# make_tls: a CA with a certificate for the servers at localhost and 127.0.0.1 and one for a client, and a second CA,
# which no server trusts, with one for a client; once a run.
make_tls() {
    [ ! -s "$TLS/server-both.pem" ] || return 0
    need openssl openssl
    mkdir -p "$TLS"
    (
        cd "$TLS"
        for name in ca other-ca; do
            openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=$name of the tests" \
                -addext "basicConstraints=critical,CA:TRUE" -keyout "$name.key" -out "$name.pem"
        done
        issue ca client "subjectAltName=DNS:client"
        issue other-ca other-client "subjectAltName=DNS:client"
        issue ca server "subjectAltName=DNS:localhost,IP:127.0.0.1"
        cat server.key server.pem >server-both.pem # as Kafka wants it
    ) 2>"$TLS/openssl.log" || die "openssl: $(tail -n 3 "$TLS/openssl.log")"
}

# issue CA NAME EXTENSION: a key and a certificate of the CA, in the current directory.
issue() {
    openssl req -newkey rsa:2048 -nodes -subj "/CN=$2" -keyout "$2.key" -out "$2.csr"
    openssl x509 -req -in "$2.csr" -CA "$1.pem" -CAkey "$1.key" -CAcreateserial -days 2 -out "$2.pem" \
        -extfile <(echo "$3")
}
