#!/bin/sh
# Makes sure that the programs of the test bench are there: `need.sh build|vm|packages|deny|nextest|images ...`.
# As root it installs what is missing; otherwise it says what to install and ends with status 1.
# Called by the Makefile only. It never removes a package and never touches the sources of apt.
set -eu

missing=""
want() { # want PROGRAM PACKAGE: note the package when the program is not there
    command -v "$1" >/dev/null 2>&1 || PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

# The version of a package that apt would take together with the VMM, empty when it has none.
candidate() { LC_ALL=C apt-cache policy "$1" | sed -n 's/^  Candidate: //p' | grep -v '(none)' || :; }
installed() { dpkg-query -W -f '${db:Status-Abbrev}${Version}' "$1" 2>/dev/null | sed -n 's/^.i //p'; }

install_missing() {
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
        echo "need.sh: install these first (Debian names), or run as root:$missing" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    lock="-o DPkg::Lock::Timeout=300"
    # shellcheck disable=SC2086 # words on purpose
    apt-get $lock -qq update
    also=""
    case " $missing " in *" qemu-system-x86 "*)
        # Other QEMU packages of a newer suite conflict with the VMM of this one: apt would remove them, which is not ours to decide. Take them all from the same suite.
        version=$(candidate qemu-system-x86)
        for sibling in qemu-utils qemu-block-extra qemu-system-common qemu-system-data qemu-system-gui; do
            have=$(installed "$sibling")
            case "$sibling" in qemu-system-data) wanted=${version%+b[0-9]*} ;; *) wanted=$version ;; esac
            if [ -n "$have" ] && [ "$have" != "$wanted" ]; then also="$also $sibling=$wanted"; fi
        done ;;
    esac
    echo "need.sh: installing$missing$also" >&2
    # shellcheck disable=SC2086
    apt-get $lock -qq install -y --no-install-recommends --allow-downgrades $missing $also >/dev/null
}

cargo_tool() { # cargo_tool SUBCOMMAND VERSION [LEVEL]: built once, without optimisation unless LEVEL says so, which halves the wait; one of the machine's own is taken as it is
    tools=$BANGER_BENCH_CACHE/tools
    grep -qs "^\"cargo-$1 $2 " "$tools/.crates.toml" && return 0
    case $(command -v "cargo-$1") in ""|"$tools"/*) ;; *) return 0 ;; esac
    echo "need.sh: building cargo-$1 $2 into $tools" >&2
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_DEV_OPT_LEVEL="${3:-0}" cargo install --quiet --locked --debug --force --root "$tools" --target-dir target/tools "cargo-$1@$2"
}

for group in "$@"; do
    case "$group" in
    build)
        want cc build-essential
        want c++ build-essential
        want make build-essential ;;
    vm)
        want qemu-system-x86_64 qemu-system-x86
        want mmdebstrap mmdebstrap
        want mkfs.ext4 e2fsprogs
        want ssh openssh-client
        want setpriv util-linux
        want zstd zstd
        [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing="$missing debian-archive-keyring" ;;
    nextest)
        # The helper's tests compare with what nft shows; those of repositories are about git.
        want nft nftables
        want git git ;;
    images)
        # Imports are compared with what these make of the same bytes, and with how long they take.
        want umoci umoci
        want skopeo skopeo
        want bsdtar libarchive-tools ;;
    packages)
        # They look at the packages: what is missing is skipped elsewhere, and installed where apt is.
        if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
            want lintian lintian
            want rpmlint rpmlint
            want rpm rpm
        fi ;;
    deny) ;;
    *) echo "need.sh: unknown group $group" >&2; exit 2 ;;
    esac
done
install_missing
for group in "$@"; do
    case "$group" in
    packages)
        cargo_tool deb 3.8.0
        # It compresses the packages itself: without optimisation that takes minutes.
        cargo_tool generate-rpm 0.21.1 2 ;;
    deny) cargo_tool deny 0.20.2 ;;
    nextest) cargo_tool nextest 0.9.143 ;;
    esac
done
