# What the scripts of the cluster share: places, certificates, processes, waits.
# shellcheck shell=bash disable=SC2034
# Sourced, not run.

KUBE_VERSION=1.36.3
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/wallaroo-connectors/cluster"
# The binaries of these very sources.
KUBE="$CACHE/$KUBE_VERSION-$(cd "$(dirname "${BASH_SOURCE[0]}")" && cat kube/go.mod kube/go.sum kube/main.go build | sha256sum | cut -c1-12)"
DEADLINE=60 # seconds until a component must answer; a busy machine needs several times the usual 4

die() { echo "cluster: $*" >&2; exit 1; }

# wait_for WHAT COMMAND…: until the command succeeds.
wait_for() {
    local what=$1 end=$((SECONDS + DEADLINE))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || { tail -n 5 "$DIR"/*.log >&2; die "$what is not there after $DEADLINE s; the logs end as above"; }
        sleep 0.1
    done
}

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_ports COUNT: the first of so many neighbours of which none is taken, below those that the kernel gives to clients
# and at random, so that two that start at the same time hardly choose the same.
free_ports() {
    local base port attempt
    for attempt in $(seq 50); do
        base=$((15000 + RANDOM % 1000 * 4))
        for port in $(seq "$base" $((base + $1 - 1))); do ! port_open "$port" || continue 2; done
        echo "$base"
        return
    done
    die "no free ports after $attempt attempts"
}

# make_ca: the authority that signs all, and the key of service accounts' tokens, in $DIR/pki.
make_ca() {
    local pki=$DIR/pki
    mkdir -p "$pki"
    printf '[req]\ndistinguished_name=dn\n[dn]\n' >"$pki/openssl.cnf"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -config "$pki/openssl.cnf" \
        -subj /CN=tests -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
        -addext subjectKeyIdentifier=hash -keyout "$pki/ca.key" -out "$pki/ca.crt" 2>/dev/null
    openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$pki/sa.key" 2>/dev/null
    openssl pkey -in "$pki/sa.key" -pubout -out "$pki/sa.pub"
}

# make_cert NAME COMMON_NAME ORGANIZATION SUBJECT_ALT_NAMES: key and certificate of the authority.
make_cert() {
    local pki=$DIR/pki
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -config "$pki/openssl.cnf" \
        -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -subj "/O=$3/CN=$2" -addext basicConstraints=CA:FALSE \
        -addext keyUsage=digitalSignature -addext extendedKeyUsage=clientAuth,serverAuth \
        -addext "subjectAltName=$4" -addext authorityKeyIdentifier=keyid -keyout "$pki/$1.key" -out "$pki/$1.crt" 2>/dev/null
}

# make_kubeconfig USER SERVER: $DIR/USER.kubeconfig, with the certificate of that name inside.
make_kubeconfig() {
    local pki=$DIR/pki
    (
        umask 077
        cat >"$DIR/$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters:
- {name: tests, cluster: {server: "$2", certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}}
users:
- {name: $1, user: {client-certificate-data: $(base64 -w0 "$pki/$1.crt"), client-key-data: $(base64 -w0 "$pki/$1.key")}}
contexts:
- {name: tests, context: {cluster: tests, user: $1}}
current-context: tests
YAML
    )
}

# start NAME COMMAND…: in a process group of its own, with a log.
STARTED=()
start() {
    local name=$1
    shift
    setsid -- "$@" >"$DIR/$name.log" 2>&1 </dev/null &
    STARTED+=($!)
}

# end_all: ends what was started, the last first.
end_all() {
    local index
    for ((index = ${#STARTED[@]} - 1; index >= 0; index--)); do
        kill -s KILL -- "-${STARTED[$index]}" 2>/dev/null || true
        wait "${STARTED[$index]}" 2>/dev/null || true
    done
}
