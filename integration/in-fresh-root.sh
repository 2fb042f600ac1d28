#!/usr/bin/env bash
# Runs a command of this repository in a fresh Debian root that has only Rust, a C compiler, git and curl:
# what a newcomer's machine has. Needs root, debootstrap and a committed state; the working tree is cloned.
#
#   integration/in-fresh-root.sh ./deploy/quickstart.sh
#   integration/in-fresh-root.sh ./integration/run.sh
#
# HOLDFAST_FRESH_ROOT (default /var/tmp/holdfast-fresh-root) is kept for the next call; its clone and what was
# built in it are not. HOLDFAST_FRESH_USER=1 runs as an ordinary user instead of root.
set -euo pipefail

fail() {
    printf 'in-fresh-root: %s\n' "$*" >&2
    exit 1
}

[ $# -gt 0 ] || fail "give a command, for example ./integration/run.sh"
[ "$(id -u)" = 0 ] || fail "needs root, for chroot and mounts"
command -v debootstrap >/dev/null || fail "debootstrap is missing (Debian: apt-get install debootstrap)"

repo=$(cd "$(dirname "$0")/.." && pwd)
fresh=$(realpath -m "${HOLDFAST_FRESH_ROOT:-/var/tmp/holdfast-fresh-root}")

if [ ! -e "$fresh/.complete" ]; then
    rm -rf -- "${fresh:?}"
    debootstrap --variant=minbase --include=gcc,libc6-dev,git,curl,ca-certificates bookworm "$fresh"
    # The toolchain itself, without rustup: nothing else of this machine gets in.
    mkdir -p "$fresh/opt"
    cp -a "$(rustc --print sysroot)" "$fresh/opt/rust"
    chroot "$fresh" useradd --create-home newcomer
    touch "$fresh/.complete"
fi

# In a mount namespace of its own, so that nothing stays mounted whatever happens.
export fresh repo
export as_user=${HOLDFAST_FRESH_USER:-0}
exec unshare --mount --propagation private bash -euo pipefail -s "$@" <<'INNER'
for dir in proc sys dev; do mount --rbind "/$dir" "$fresh/$dir"; done
mount -t tmpfs tmpfs "$fresh/dev/shm"
# What the network asks of every machine in it: its resolver, and the authorities of its proxy if it has one.
cp /etc/resolv.conf "$fresh/etc/resolv.conf"
cp -a /usr/local/share/ca-certificates/. "$fresh/usr/local/share/ca-certificates/"
chroot "$fresh" update-ca-certificates >/dev/null 2>&1
home=/root user=root
if [ "$as_user" = 1 ]; then home=/home/newcomer user=newcomer; fi
rm -rf "$fresh$home/holdfast"
git -c safe.directory='*' clone -q "$repo" "$fresh$home/holdfast"
chroot "$fresh" chown -R "$user:" "$home/holdfast"
exec chroot --userspec="$user" "$fresh" /usr/bin/env -i HOME="$home" USER="$user" TERM=dumb LANG=C.UTF-8 \
    PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /bin/bash -c 'cd "$HOME/holdfast" && exec "$@"' bash "$@" </dev/null
INNER
