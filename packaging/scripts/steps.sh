# The steps of the package's scripts, for the .deb and the .rpm. `make packages` puts this file into
# each script, in the place of the line "#STEPS#". Each step may be run again, and none of them
# touches a running VM: KillMode=process lets VMs outlive both services. No step uses the network.

# The commands below are about this machine's daemon, whatever machine or daemon root's own commands ask.
export BANGER_HOST=local
unset BANGER_SOCKET BANGER_CONFIG

UNITS='banger-priv.socket banger-priv.service bangerd.socket bangerd-metrics.socket bangerd-refused.socket bangerd.service banger-host-firewall.service banger-host-firewall.timer banger-resolver.service banger-guests.service'
# bangerd-metrics.socket and bangerd-refused.socket start and stop with bangerd.service.
START='banger-priv.socket bangerd.socket banger-priv.service bangerd.service banger-host-firewall.service banger-host-firewall.timer banger-resolver.service banger-guests.service'
# The cgroup of all VMs: what it says is true whatever the daemon's state.
VMS=/sys/fs/cgroup/system.slice/bangerd.service/vms/cgroup.events
# The helper's ledger, a file for each VM that has a tap or a disk, named by the VM's id.
LEDGER=/run/banger-priv
DATABASE=/var/lib/banger/banger.db
# The newest schema of the database that this package knows.
SCHEMA='#SCHEMA#'

# Of the .rpm: the units that were there before an upgrade.
FORMER_UNITS=/run/banger-former-units

# Whether systemd runs this host. It does not in a chroot, where images of hosts are made.
booted() {
    [ -d /run/systemd/system ]
}

# Those of the named units that are there.
present() {
    for unit in "$@"; do
        if [ -e "/usr/lib/systemd/system/$unit" ]; then
            echo "$unit"
        fi
    done
}

# Whether the package before this one did not have the unit. Where nobody wrote down what it had, none is new.
is_new() {
    [ -r "$FORMER_UNITS" ] && ! grep -qxF "$1" "$FORMER_UNITS"
}

# SQLite keeps the schema's number in bytes 60 to 63 of the file (sqlite.org/fileformat.html).
database_fits() {
    # Its folder is the daemon's, which could put something there that never ends.
    { [ -f "$DATABASE" ] && [ -r "$DATABASE" ]; } || return 0
    found=$(od -An -tu1 -j60 -N4 "$DATABASE" 2>/dev/null | { read -r a b c d || :; echo $(((${a:-0} << 24) + (${b:-0} << 16) + (${c:-0} << 8) + ${d:-0})); })
    if [ "$found" -le "$SCHEMA" ]; then
        return 0
    fi
    cat >&2 <<TEXT
banger: $DATABASE was written by a newer banger (schema $found, this package knows $SCHEMA),
so this package is not installed and nothing has changed. One of these helps:
  Keep the newer package.
  Bring back a database from before the upgrade, which forgets the VMs made since:
    systemctl stop bangerd.socket bangerd.service
    runuser -u bangerd -- cp /var/lib/banger/backups/COPY $DATABASE
    runuser -u bangerd -- rm -f $DATABASE-wal $DATABASE-shm
TEXT
    return 1
}

make_users_and_folders() {
    systemd-sysusers banger.conf
    systemd-tmpfiles --create banger.conf
}

# bangerd-metrics.socket was enabled for sockets.target once, and started a daemon whose files were being copied.
move_links() {
    old=/etc/systemd/system/sockets.target.wants/bangerd-metrics.socket
    [ -L "$old" ] || return 0
    rm -f "$old"
    mkdir -p /etc/systemd/system/bangerd.service.wants
    ln -sf /usr/lib/systemd/system/bangerd-metrics.socket /etc/systemd/system/bangerd.service.wants/
}

# Whether firewalld has the package's zone as it is in its file. A reload ends what others have set at run time.
zone_is_known() {
    known=$(firewall-cmd --info-zone=banger 2>/dev/null) || return 1
    for words in 'target: ACCEPT' 'interfaces: .*bgr-+' 'forward: yes'; do
        echo "$known" | grep -q "$words" || return 1
    done
}

bring_up_host() {
    systemctl --system daemon-reload
    # A module that is not there is reported by `banger doctor`, with what to do.
    modprobe --quiet --all dm_mod dm_snapshot loop tun || true
    udevadm control --reload || true
    # In the order of all files, so that an administrator's word stands.
    /usr/lib/systemd/systemd-sysctl --prefix=/net/ipv4/ip_forward --prefix=/net/ipv4/neigh/default || true
    if systemctl --quiet is-active firewalld.service && ! zone_is_known; then
        firewall-cmd --quiet --reload || true
    fi
    if systemctl --quiet is-active systemd-networkd.service; then
        networkctl reload || true
    fi
    if systemctl --quiet is-active NetworkManager.service; then
        nmcli general reload conf || true
    fi
}

# A socket unit that was masked while it listened has lost its socket at systemd's next reload, and still says that it
# listens. Nobody notices before the service behind it is restarted; then only a restart of the socket helps, which
# restarts the service too. /proc/net/unix has what listens. $1: the command that does as `systemctl` does.
reopen_sockets() {
    for name in priv bangerd; do
        unit=banger-priv.socket
        [ "$name" = priv ] || unit=bangerd.socket
        if systemctl --quiet is-active "$unit" && ! grep -q " /run/banger/$name.sock\$" /proc/net/unix; then
            $1 restart "$unit" || true
        fi
    done
}

# The host's own kernel, for everybody. Without it the package works all the same, so nothing here
# fails. Only at the first installation: what an administrator has deleted since stays deleted.
import_kernel() {
    kernel=/boot/vmlinuz-$(uname -r)
    [ -r "$kernel" ] || kernel=/lib/modules/$(uname -r)/vmlinuz
    if [ ! -r "$kernel" ]; then
        echo "The kernel of this host cannot be read. Import a kernel for guests: banger kernel import --shared FILE"
    elif ! timeout 120 banger kernel import --shared "$kernel"; then
        echo "Try again later: banger kernel import --shared $kernel"
    fi
}

say_what_is_next() {
    if booted; then now='is now'; else now='will be'; fi
    cat <<TEXT
banger is installed.
  - Let USER use it:          usermod --append --groups banger USER   (then log in again)
  - Check this host:          banger doctor
  - Firecracker is not part of this package: put it into /usr/bin or /usr/local/bin.
  - NOTE: net.ipv4.ip_forward $now 1, so this host routes packets between its networks. Guests cannot reach
    out without it. If the host has several networks, look at its FORWARD rules.
TEXT
}

guests_run() {
    [ -e "$VMS" ] && grep -qx 'populated 1' "$VMS"
}

holds_anything() {
    ls "$LEDGER" 2>/dev/null | grep -qE '^[0-9a-f]{64}$'
}

# Status 1: guests still run, so the package has to stay.
shut_down_guests() {
    guests_run || return 0
    echo "banger: shutting down all guests"
    banger vm stop --everyone || true
    guests_run || return 0
    cat >&2 <<'TEXT'
banger: guests still run, so the package is not removed.
  See whose they are:         banger vm list --all
  Shut them down:             banger vm stop --everyone
  End them without saving:    banger vm kill NAME...
TEXT
    return 1
}

# Shuts all guests down and stops all services. $1: the command that does as `systemctl` does. Status 1: guests still
# run, or something of them is still there; then the services run again, and the package has to stay.
stop_everything() {
    for turn in 1 2; do
        shut_down_guests || return 1
        # Its stop asks the daemon, so it comes before the daemon's.
        $1 stop banger-guests.service || true
        $1 stop $(present banger-host-firewall.timer banger-host-firewall.service) || true
        # In one call: while its socket is being stopped, nothing starts the daemon. It comes before the helper, which
        # it calls while it stops.
        $1 stop $(present bangerd.socket bangerd-metrics.socket bangerd.service) || true
        # What a start that was at work then has left, guests too: they outlive the daemon (KillMode=process).
        if ! guests_run && ! holds_anything; then
            $1 stop $(present banger-priv.socket banger-priv.service) || true
            # systemd keeps the daemon's sockets for names, and with them the unit.
            systemctl clean --what=fdstore bangerd.service 2>/dev/null || true
            return 0
        fi
        $1 start $(present $START) || true
        # A daemon that starts removes what belongs to no VM.
        wait=30
        while [ "$wait" -gt 0 ] && holds_anything && ! guests_run; do
            sleep 1
            wait=$((wait - 1))
        done
    done
    cat >&2 <<'TEXT'
banger: taps or disks of guests are still there, so the package is not removed.
  See what they are:          banger doctor --leaks
  Remove what belongs to no guest:  banger doctor --leaks --fix
  A restart of the host removes all of them.
TEXT
    return 1
}

# What outlives the helper on purpose, so that guests stay confined while it restarts. A link is
# banger's only by its alias, which needs CAP_NET_ADMIN to set.
remove_remains() {
    if booted; then
        systemctl --system daemon-reload || true
        udevadm control --reload || true
    fi
    if command -v nft >/dev/null; then
        nft delete table inet banger 2>/dev/null || true
        nft delete table arp banger 2>/dev/null || true
    fi
    if command -v ip >/dev/null; then
        for link in $(ip -oneline link show type dummy | sed -n 's/^[0-9]*: \([^:@]*\)[:@].*alias banger:1:bridge.*/\1/p'); do
            ip link delete dev "$link" || true
        done
    fi
}

# A folder may be a file system of its own, which stays, empty. What is mounted below it is not looked into.
erase_state() {
    for folder in /var/lib/banger /var/lib/banger-priv /run/banger /run/banger-priv /run/bangerd; do
        if [ -d "$folder" ] && [ ! -L "$folder" ]; then
            find "$folder" -xdev -mindepth 1 -delete || true
            rmdir "$folder" 2>/dev/null || echo "banger: $folder stays: something is mounted there"
        else
            rm -f "$folder"
        fi
    done
}
