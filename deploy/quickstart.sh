#!/usr/bin/env bash
# Holdfast on one machine, in a few minutes: builds it, starts a controller and an agent as ordinary
# processes, backs a directory up twice, restores it, compares byte by byte, and says what to type next.
# Needs Rust and a C compiler; no root. Everything it makes lies in one directory; your own is only read.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: deploy/quickstart.sh [DIR]     back up and restore DIR (default /usr/share); run it as often as you like
       deploy/quickstart.sh --down    stop everything and remove everything it made

Environment: HOLDFAST_QUICKSTART_DIR   where it all goes (default ~/.local/share/holdfast-quickstart)
             CARGO_TARGET_DIR          is honoured
TEXT
}

readonly MARKER=.holdfast-quickstart
# The part of DIR that is copied, changed and backed up again: enough to see what an increment is.
readonly SCRATCH_FILES=3000 SCRATCH_BYTES=$((200 * 1024 * 1024))

say() { printf '\n==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
fail() {
    printf 'quickstart: %s\n' "$*" >&2
    exit 1
}

repo=$(cd "$(dirname "$0")/.." && pwd)
base=$(realpath -m "${HOLDFAST_QUICKSTART_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/holdfast-quickstart}")

# --- Processes of ours --------------------------------------------------------

# pid_of NAME: the process id, if that process still runs and is the program that we started.
pid_of() {
    local pid
    pid=$(cat "$base/run/$1.pid" 2>/dev/null) || return 1
    [[ $pid =~ ^[0-9]+$ ]] || return 1
    # A number alone proves nothing: the process must be our own copy of the program.
    [[ $(readlink "/proc/$pid/exe" 2>/dev/null) == "$base/bin/holdfast-$1"* ]] || return 1
    echo "$pid"
}

start() {
    local name=$1 config=$2
    pid_of "$name" >/dev/null && return
    HOLDFAST_CONFIG_DIR=$base/admin setsid "$base/bin/holdfast-$name" run --config "$config" \
        </dev/null >>"$base/log/$name.log" 2>&1 &
    echo $! >"$base/run/$name.pid"
}

stop() {
    local name=$1 pid
    pid=$(pid_of "$name") || return 0
    kill -TERM "$pid"
    for _ in $(seq 200); do
        pid_of "$name" >/dev/null || break
        sleep 0.1
    done
    if pid=$(pid_of "$name"); then kill -KILL "$pid"; fi
    rm -f "$base/run/$name.pid"
}

# wait_for WHAT SECONDS COMMAND…
wait_for() {
    local what=$1 seconds=$2
    shift 2
    for _ in $(seq $((seconds * 5))); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.2
    done
    tail -n 20 "$base"/log/*.log >&2 || true
    fail "waited $seconds s in vain for $what; the logs are in $base/log"
}

ctl() { HOLDFAST_CONFIG_DIR=$base/admin "$base/bin/holdfastctl" "$@"; }

agent_connected() { ctl get agents -o json | tr -d ' \n' | grep -q '"connected":true'; }

down() {
    if [ ! -e "$base/$MARKER" ]; then
        echo "quickstart: nothing of ours in $base"
        return
    fi
    stop agent
    stop controller
    rm -rf -- "${base:?}"
    echo "quickstart: stopped, and removed $base"
}

# --- Comparing ----------------------------------------------------------------

# facts DIR: every entry's name, type, mode, owner (for root), time to the nanosecond, length, link target.
facts() {
    local owner=''
    if [ "$(id -u)" = 0 ]; then owner=' %U:%G'; fi
    (cd "$1" && find . -xdev -mindepth 1 ! -type s \( -type d -printf "%p d %m$owner %T@\0" \
        -o -type l -printf "%p l$owner %T@ -> %l\0" -o -printf "%p %y %m$owner %T@ %s\0" \) | LC_ALL=C sort -z)
}

# same WHAT WANTED GOT
same() {
    local what=$1 wanted=$2 got=$3
    if ! cmp -s <(facts "$wanted") <(facts "$got"); then
        diff <(facts "$wanted" | tr '\0' '\n') <(facts "$got" | tr '\0' '\n') | head -n 20 >&2 || true
        fail "$what: names, modes, owners or times differ between $wanted and $got"
    fi
    diff -rq --no-dereference "$wanted" "$got" >&2 || fail "$what: contents differ between $wanted and $got"
    note "$what: $(find "$got" -xdev -mindepth 1 | wc -l) entries, $(du -sh --apparent-size "$got" | cut -f1), equal byte by byte"
}

# Where a restore below $1 put the directory $2.
restored() { if [ -d "$1$2" ]; then echo "$1$2"; else echo "$1"; fi; }

# --- Steps --------------------------------------------------------------------

build() {
    say "Building (the first time takes some minutes)"
    command -v cargo >/dev/null || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
    command -v cargo >/dev/null || fail "cargo is missing: install Rust (https://rustup.rs) and run this again"
    command -v cc >/dev/null || fail "a C compiler is missing (Debian: apt-get install gcc): install it and run this again"
    (cd "$repo" && cargo build --release --locked -p holdfast-controller -p holdfast-agent -p holdfastctl)
    local target
    target=$(cd "$repo" && realpath -m "${CARGO_TARGET_DIR:-target}")
    mkdir -p "$base/bin"
    local program
    for program in holdfast-controller holdfast-agent holdfastctl; do
        # A running program cannot be overwritten, and need not be: an older one goes on until --down.
        if ! cmp -s "$target/release/$program" "$base/bin/$program"; then
            if [ "$program" != holdfastctl ] && pid_of "${program#holdfast-}" >/dev/null; then
                stop "${program#holdfast-}"
            fi
            cp "$target/release/$program" "$base/bin/$program.new"
            mv "$base/bin/$program.new" "$base/bin/$program"
        fi
    done
}

free_port() {
    local port
    for port in $(seq 7443 7543); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || {
            echo "$port"
            return
        }
    done
    fail "no free port between 7443 and 7543"
}

found_cluster() {
    if [ -e "$base/admin-ready" ]; then
        note "using the cluster of the last run"
        return
    fi
    # A first run that broke off half-way left nothing worth keeping.
    rm -rf "$base/controller" "$base/admin" "$base/store" "$base/agent" "$base/agent.toml" "$base/kit.txt"
    local port
    port=$(free_port)
    mkdir -p "$base/controller" "$base/store"
    cat >"$base/controller/controller.toml" <<TOML
data_dir = "$base/controller/data"
identity_dir = "$base/controller/identity"

[node]
id = 1
listen = "127.0.0.1:$port"

[[store]]
site = "primary"
path = "$base/store"

[telemetry]
log = "console"
TOML
    ctl init --name quickstart --address "127.0.0.1:$port" --recovery-kit "$base/kit.txt" \
        --controller-dir "$base/controller" >"$base/log/init.log" 2>&1 || {
        cat "$base/log/init.log" >&2
        fail "init failed"
    }
    start controller "$base/controller/controller.toml"
    wait_for "the controller" 60 ctl status
    ctl token create local --out "$base/agent.token" >/dev/null
    "$base/bin/holdfast-agent" join --token-file "$base/agent.token" --allow "$base/scratch" \
        --config "$base/agent.toml" --state-dir "$base/agent" >"$base/log/join.log" 2>&1 || {
        cat "$base/log/join.log" >&2
        fail "the agent could not join"
    }
    rm -f "$base/agent.token"
    touch "$base/admin-ready"
}

# The agent obeys only what its own file allows: the directories asked for so far, and where to restore.
allow() {
    touch "$base/allowed"
    grep -qxF -- "$1" "$base/allowed" || {
        echo "$1" >>"$base/allowed"
        stop agent
    }
    local list='' dir
    while IFS= read -r dir; do list+="${list:+, }\"$dir\""; done <"$base/allowed"
    cat >"$base/agent.toml" <<TOML
state_dir = "$base/agent"
allow = [$list]
restore_targets = ["$base/restored"]

[telemetry]
log = "console"
TOML
}

# source_of NAME DIR
source_of() {
    cat >"$base/$1.yaml" <<YAML
kind: Source
name: local/$1
files:
  roots:
    - "$2"
YAML
    ctl apply -f "$base/$1.yaml"
}

backup() {
    local code=0 began=$SECONDS
    ctl backup run "local/$1" --wait || code=$?
    case $code in
        0) note "local/$1: done in $((SECONDS - began)) s" ;;
        3) note "local/$1: done in $((SECONDS - began)) s, but some files could not be read (see: holdfastctl get snapshots)" ;;
        *) fail "the backup of local/$1 failed (exit code $code); the logs are in $base/log" ;;
    esac
    return "$code"
}

newest() { ctl get snapshots "local/$1" -o name | head -n 1; }

make_scratch() {
    rm -rf "$base/scratch" "$base/scratch-before"
    mkdir -p "$base/scratch"
    (cd "$1" && find . -xdev -type f -readable -size -2048k -printf '%s %p\0' |
        awk -v RS='\0' -v ORS='\0' -v most="$SCRATCH_FILES" -v max="$SCRATCH_BYTES" \
            'NR <= most { sum += $1; sub(/^[0-9]+ /, ""); if (sum < max) print }' |
        tar --null -T - -cf -) | tar -C "$base/scratch" -xf -
    [ -n "$(ls -A "$base/scratch")" ] || echo "an empty directory was given" >"$base/scratch/first"
}

change_scratch() {
    local file count=0
    while IFS= read -r -d '' file; do
        count=$((count + 1))
        case $((count % 5)) in
            0) rm -- "$file" ;;
            1) echo "changed by quickstart" >>"$file" ;;
            2) mv -- "$file" "$file.renamed" ;;
            3) chmod u+x -- "$file" ;;
            4) cp -- "$file" "$file.copy" ;;
        esac
    done < <(find "$base/scratch" -type f -print0 | LC_ALL=C sort -z | awk -v RS='\0' -v ORS='\0' 'NR % 50 == 1')
    ln -sf nowhere "$base/scratch/quickstart-link"
    note "$count files of $base/scratch changed, removed, renamed, copied or made executable"
}

enough_space() {
    local needed free
    needed=$(($(du -sx -B1 --apparent-size "$1" 2>/dev/null | cut -f1) * 2 + 4 * SCRATCH_BYTES))
    free=$(df -B1 --output=avail "$base" | tail -n 1)
    [ "$free" -gt "$needed" ] ||
        fail "$base has $((free >> 20)) MiB free, this needs $((needed >> 20)) MiB: name a smaller directory, or set HOLDFAST_QUICKSTART_DIR"
}

up() {
    local dir name
    dir=$(realpath -e "$1" 2>/dev/null) || fail "$1 does not exist"
    if [ ! -d "$dir" ] || [ ! -r "$dir" ]; then fail "$dir is not a directory that you can read"; fi
    case $dir/ in "$base"/*) fail "$dir lies in quickstart's own directory" ;; esac
    case $base/ in "$dir"/*) fail "$dir holds quickstart's own directory $base: name another, or set HOLDFAST_QUICKSTART_DIR" ;; esac
    case $dir$base in *[\"\\$'\n']*) fail "quotes, backslashes and line breaks in $dir or $base are beyond this script" ;; esac
    if [ -e "$base" ] && [ ! -e "$base/$MARKER" ] && [ -n "$(ls -A "$base")" ]; then
        fail "$base exists and is not ours: set HOLDFAST_QUICKSTART_DIR"
    fi
    mkdir -p "$base/run" "$base/log"
    chmod 700 "$base"
    touch "$base/$MARKER"
    exec 9>"$base/run/lock"
    flock -n 9 || fail "another quickstart is running in $base"
    enough_space "$dir"
    build 9>&-

    say "Starting a controller and an agent"
    found_cluster 9>&-
    start controller "$base/controller/controller.toml" 9>&-
    wait_for "the controller" 60 ctl status
    allow "$base/scratch"
    allow "$dir"
    start agent "$base/agent.toml" 9>&-
    wait_for "the agent" 60 agent_connected
    note "controller: process $(pid_of controller), agent: process $(pid_of agent), mutual TLS between them"

    name=$(basename "$dir" | LC_ALL=C tr '[:upper:]' '[:lower:]' | LC_ALL=C tr -c '[:lower:][:digit:]\n' '-' | sed 's/^-*//; s/-*$//')
    name=dir-${name:-root}
    source_of "$name" "$dir"
    source_of scratch "$base/scratch"

    say "Backing up $dir, and a copy of some of it that will change"
    local whole=0
    backup "$name" || whole=$?
    make_scratch "$dir"
    cp -a "$base/scratch" "$base/scratch-before"
    backup scratch
    local before
    before=$(newest scratch)

    say "Changing the copy, and backing up both again"
    change_scratch
    backup scratch
    backup "$name" || whole=$?

    say "Restoring, and comparing byte by byte"
    rm -rf "$base/restored"
    mkdir -p "$base/restored"
    ctl restore "local/scratch@$before" --to "$base/restored/scratch-before"
    same "the copy before its changes" "$base/scratch-before" "$(restored "$base/restored/scratch-before" "$base/scratch")"
    ctl restore local/scratch --to "$base/restored/scratch"
    same "the copy after its changes" "$base/scratch" "$(restored "$base/restored/scratch" "$base/scratch")"
    if [ "$whole" = 0 ]; then
        ctl restore "local/$name" --to "$base/restored/$name"
        same "$dir" "$dir" "$(restored "$base/restored/$name" "$dir")"
    else
        note "$dir holds files that you may not read; it is restored, but not compared as a whole"
        ctl restore "local/$name@$(newest "$name")" --to "$base/restored/$name"
    fi
    rm -rf "$base/scratch-before"

    say "Done"
    ctl get snapshots
    cat <<TEXT

What is where
    $base/controller   the controller: configuration, Raft log, catalog, index
    $base/store        the packs: compressed and sealed, unreadable without the agent's keys
    $base/agent        the agent: its keys and caches
    $base/kit.txt      the recovery kit: with it and the store alone, everything comes back
    $base/restored     what was restored
    $base/log          what both programs say

What to type next
    export HOLDFAST_CONFIG_DIR=$base/admin PATH=$base/bin:\$PATH
    holdfastctl status
    holdfastctl get snapshots
    holdfastctl ls local/$name
    holdfastctl restore local/$name --to /tmp/restored-by-hand
    holdfastctl verify --read-data
    $0 --down          # stops both processes and removes all of this
TEXT
}

case ${1:-} in
    -h | --help) usage ;;
    --down) down ;;
    -*) usage >&2; exit 2 ;;
    *) up "${1:-/usr/share}" ;;
esac
