#!/usr/bin/env bash
# The one test command: checks and tests the whole workspace on a Debian that has only Rust, a C
# compiler, git and curl. Installs what is missing, asks nothing, and prints what it does.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: integration/run.sh [--long | --bench | --fuzz] [--no-install]

  (nothing)     format, lints, documentation and tests with short counts
  --long        the same with the long counts (HOLDFAST_LONG=1) and cargo-deny
  --bench       the bench against restic, borg, rustic, rsync, cp and tar|zstd; nothing else
  --fuzz        each fuzz target from its committed corpus, one after the other; needs a nightly Rust
  --no-install  fail instead of installing what is missing

Environment: CARGO_TARGET_DIR is honoured. HOLDFAST_SEED repeats a seeded test run.
             HOLDFAST_BENCH_ROUNDS (3), HOLDFAST_BENCH_SCALE (1.0), HOLDFAST_BENCH_DIR, HOLDFAST_BENCH_JSON,
             HOLDFAST_BENCH_MINUTES (60: no round is begun that would end later), HOLDFAST_BENCH_TOOLS,
             HOLDFAST_BENCH_PIPELINE (as in level=1,workers=3: the agent's settings) and HOLDFAST_BENCH_DATA
             (tree,image,text; also many; or daily, postgres, replay or load alone) change the bench.
             HOLDFAST_FUZZ_SECONDS (300) per target, HOLDFAST_FUZZ_TARGETS (all) change the fuzzing.
TEXT
}

# Pinned, so that a bench of next year measures the same peer.
readonly RUSTIC_VERSION=0.11.4
readonly CARGO_DENY_VERSION=0.20.2
readonly CARGO_FUZZ_VERSION=0.13.2
# Workspaces of their own, with lock files of their own.
readonly FUZZ_WORKSPACES="common/repo/fuzz integration/fuzz"

mode=ci
install=yes
for argument in "$@"; do
    case $argument in
        --long) mode=long ;;
        --bench) mode=bench ;;
        --fuzz) mode=fuzz ;;
        --no-install) install=no ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done

cd "$(dirname "$0")/.."
root=$PWD
export DEBIAN_FRONTEND=noninteractive CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
# Every caller sees the same directory, whatever its own working directory is.
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")
export CARGO_TARGET_DIR
began=$SECONDS

fail() {
    printf 'integration/run.sh: %s\n' "$*" >&2
    exit 1
}

# step NAME COMMAND…: says what runs and how long it took.
step() {
    local name=$1 start=$SECONDS
    shift
    printf '\n=== %s: %s\n' "$name" "$*"
    "$@" || fail "$name failed (after $((SECONDS - start)) s)"
    printf -- '--- %s: ok, %d s\n' "$name" $((SECONDS - start))
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n --preserve-env=DEBIAN_FRONTEND "$@"
    else
        fail "needs root for: $*. Run that as root once, or allow sudo without a password, and start again."
    fi
}

apt_updated=no
# need COMMAND PACKAGE: installs PACKAGE when COMMAND is not there.
need() {
    command -v "$1" >/dev/null && return
    [ "$install" = yes ] || fail "$1 is missing (Debian package $2), and --no-install was given"
    command -v apt-get >/dev/null || fail "$1 is missing and there is no apt-get: install it and start again"
    if [ "$apt_updated" = no ]; then
        echo "+ apt-get update"
        as_root apt-get update -qq
        apt_updated=yes
    fi
    echo "+ apt-get install $2"
    as_root apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

need_rust() {
    command -v cargo >/dev/null || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
    command -v cargo >/dev/null || fail "cargo is missing: install Rust (https://rustup.rs) and start again"
    local part
    for part in fmt clippy; do
        cargo "$part" --version >/dev/null 2>&1 && continue
        command -v rustup >/dev/null || fail "cargo $part is missing: install that part of your Rust and start again"
        [ "$install" = yes ] || fail "cargo $part is missing, and --no-install was given"
        echo "+ rustup component add ${part/fmt/rustfmt}"
        rustup component add "${part/fmt/rustfmt}"
    done
}

# The power-cut tests mount a file system of their own. A bare root made by debootstrap has the
# kernel's FUSE but no device node for it.
need_fuse() {
    need fusermount3 fuse3
    [ -e /dev/fuse ] && return
    echo "+ mknod /dev/fuse"
    as_root mknod -m 666 /dev/fuse c 10 229 || true
}

# The tests of common/postgres run servers of their own, as the user that the package makes. Where the package is new, it
# would make and start a server beside them: it is told not to.
need_postgres() {
    local initdb=/usr/lib/postgresql/15/bin/initdb
    if [ ! -x "$initdb" ] && [ "$install" = yes ]; then
        echo "+ no server of the package's own: /etc/postgresql-common/createcluster.d/holdfast.conf"
        as_root mkdir -p /etc/postgresql-common/createcluster.d
        echo "create_main_cluster = false" | as_root tee /etc/postgresql-common/createcluster.d/holdfast.conf >/dev/null
    fi
    need "$initdb" postgresql-15
    need runuser util-linux
}

# The workspace's own lock file is checked by every step; these by none.
check_fuzz_locks() {
    local workspace
    for workspace in $FUZZ_WORKSPACES; do
        step "lock file of $workspace" sh -c \
            'cargo metadata --locked --format-version 1 --manifest-path "$1/Cargo.toml" >/dev/null' sh "$workspace"
    done
}

check_licences() {
    if ! command -v cargo-deny >/dev/null; then
        if [ "$mode" != long ] || [ "$install" = no ]; then
            printf '\n=== cargo deny: not installed, left to --long\n'
            return
        fi
        step "install cargo-deny" cargo install cargo-deny --version "=$CARGO_DENY_VERSION" --locked \
            --root "$CARGO_TARGET_DIR/tools"
        PATH=$CARGO_TARGET_DIR/tools/bin:$PATH
    fi
    local checks="bans licenses sources" workspace
    if cargo deny fetch db >/dev/null 2>&1; then
        checks="$checks advisories"
    else
        printf '\n=== advisories: the database cannot be reached from here, not checked\n'
    fi
    # shellcheck disable=SC2086 # several words on purpose
    for workspace in . $FUZZ_WORKSPACES; do
        step "what $workspace links" cargo deny --locked --manifest-path "$workspace/Cargo.toml" \
            --config "$root/deny.toml" --workspace check $checks
    done
}

run_fuzz() {
    cargo +nightly --version >/dev/null 2>&1 || fail "fuzzing needs a nightly Rust: rustup toolchain install nightly"
    local tools=$CARGO_TARGET_DIR/tools workspace target
    if ! "$tools/bin/cargo-fuzz" --version 2>/dev/null | grep -qF "$CARGO_FUZZ_VERSION"; then
        [ "$install" = yes ] || fail "cargo-fuzz $CARGO_FUZZ_VERSION is missing, and --no-install was given"
        step "install cargo-fuzz" cargo install cargo-fuzz --version "=$CARGO_FUZZ_VERSION" --locked --force --root "$tools"
    fi
    PATH=$tools/bin:$PATH
    export RUSTUP_TOOLCHAIN=nightly CARGO_TARGET_DIR=$CARGO_TARGET_DIR/fuzz
    for workspace in $FUZZ_WORKSPACES; do
        for target in $(cargo fuzz list --fuzz-dir "$workspace"); do
            case " ${HOLDFAST_FUZZ_TARGETS:-$target} " in *" $target "*) ;; *) continue ;; esac
            # What is new goes to a directory of its own: the committed corpus is small and stays so.
            mkdir -p "$CARGO_TARGET_DIR/corpus/$target"
            local words=()
            if [ -f "$workspace/$target.dict" ]; then words=(-dict="$workspace/$target.dict"); fi
            # No address sanitizer: there is no unsafe code of ours, and without it more is tried.
            step "fuzz $target" cargo fuzz run -s none --fuzz-dir "$workspace" "$target" \
                "$CARGO_TARGET_DIR/corpus/$target" "$workspace/corpus/$target" -- \
                -max_total_time="${HOLDFAST_FUZZ_SECONDS:-300}" -rss_limit_mb=2048 -timeout=10 \
                -max_len=8192 -print_final_stats=1 "${words[@]}"
        done
    done
}

run_bench() {
    local tool
    for tool in restic rsync zstd tar; do need "$tool" "$tool"; done
    need borg borgbackup
    if [[ ,${HOLDFAST_BENCH_DATA:-}, =~ ,(postgres|replay|load), ]]; then
        need_postgres
        need pgbackrest pgbackrest
    fi
    local tools=$CARGO_TARGET_DIR/tools
    if ! "$tools/bin/rustic" --version 2>/dev/null | grep -qF "$RUSTIC_VERSION"; then
        # Without its web, metrics and terminal interfaces: the backup path is the same, the build shorter.
        step "install rustic $RUSTIC_VERSION" env CARGO_TARGET_DIR="$CARGO_TARGET_DIR/rustic-build" \
            cargo install rustic-rs --version "=$RUSTIC_VERSION" --locked --no-default-features --force --root "$tools"
        rm -rf "$CARGO_TARGET_DIR/rustic-build"
    fi
    PATH=$tools/bin:$PATH
    step "build (release)" cargo build --release --locked --bins \
        -p holdfast-controller -p holdfast-agent -p holdfastctl -p holdfast-integration
    step "bench" "$CARGO_TARGET_DIR/release/holdfast-bench"
}

run_tests() {
    need_fuse
    need mount mount
    # Independent tools that restores of metadata are compared with.
    need rsync rsync
    need setfacl acl
    need setcap libcap2-bin
    need getfattr attr
    need chattr e2fsprogs
    need_postgres
    if [ "$mode" = long ]; then export HOLDFAST_LONG=1; fi
    step "format" cargo fmt --all --check
    step "lints" cargo clippy --workspace --all-targets --locked -- -D warnings
    step "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
    check_fuzz_locks
    check_licences
    # The tests start real processes: build them first, so that they are found and are of this source.
    step "binaries" cargo build --workspace --bins --locked
    if cargo nextest --version >/dev/null 2>&1; then
        local profile=(--profile default)
        # The long run's counts (seeds, kills per phase) belong into its log.
        if [ "$mode" = long ]; then profile=(--profile long --success-output final); fi
        step "tests" cargo nextest run --workspace --locked --no-fail-fast "${profile[@]}"
        step "documentation tests" cargo test --workspace --locked --doc
    else
        step "tests" cargo test --workspace --locked --no-fail-fast
    fi
}

printf 'integration/run.sh: mode %s, %s, %s cores, target directory %s\n' \
    "$mode" "$(id -un)" "$(nproc)" "$CARGO_TARGET_DIR"
need_rust
need cc gcc
case $mode in
    bench) run_bench ;;
    fuzz) run_fuzz ;;
    *) run_tests ;;
esac
printf '\nintegration/run.sh: %s passed in %d s\n' "$mode" $((SECONDS - began))
