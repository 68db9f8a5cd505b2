#!/bin/sh
# Installs natgw from its static tarball: ./install.sh install | uninstall | purge
#
# PREFIX (default /usr/local) is where it goes, DESTDIR a root other than /. `uninstall` leaves the configuration, `purge` takes it
# and the event logs along. Nothing is started: the configuration has to name this host's interfaces first.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
prefix=${PREFIX:-/usr/local}
root=${DESTDIR:-}
configuration=$root/etc/natgw/natgw.toml

put() {
    mkdir -p "$(dirname "$root$3")"
    install -m "$1" "$here/$2" "$root$3"
}

# Everything below share/ keeps its place.
shared() {
    (cd "$here/share" && find . -type f | sed 's|^\./||')
}

systemd() {
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then
        systemctl "$@"
    fi
}

install_natgw() {
    put 755 natgw "$prefix/sbin/natgw"
    shared | while read -r file; do
        put 644 "share/$file" "$prefix/share/$file"
    done
    put 644 natgw.sysusers "$prefix/lib/sysusers.d/natgw.conf"
    unit=$root$prefix/lib/systemd/system/natgw.service
    mkdir -p "$(dirname "$unit")"
    sed "s|/usr/sbin/natgw|$prefix/sbin/natgw|" "$here/natgw.service" > "$unit"
    chmod 644 "$unit"
    if [ ! -e "$configuration" ]; then
        put 644 natgw.toml /etc/natgw/natgw.toml
    fi
    if [ -z "$root" ]; then
        getent group natgw > /dev/null || groupadd --system natgw
    fi
    systemd daemon-reload
    echo "natgw is installed: write $configuration, then \`natgw check\` and \`systemctl enable --now natgw\`"
}

uninstall_natgw() {
    if systemd --quiet is-active natgw.service || systemd --quiet is-enabled natgw.service; then
        systemd disable --now natgw.service
    fi 2> /dev/null
    rm -f "$root$prefix/sbin/natgw" "$root$prefix/lib/sysusers.d/natgw.conf" \
        "$root$prefix/lib/systemd/system/natgw.service"
    shared | while read -r file; do
        rm -f "$root$prefix/share/$file"
    done
    rm -rf "$root$prefix/share/doc/natgw"
    # Folders that may have been made for it, if nothing else is in them; those that every prefix has stay.
    for folder in share/fish/vendor_completions.d share/fish share/zsh/vendor-completions share/zsh \
        share/bash-completion/completions share/bash-completion lib/systemd/system lib/systemd lib/sysusers.d; do
        rmdir "$root$prefix/$folder" 2> /dev/null || true
    done
    systemd daemon-reload
}

case ${1:-install} in
install)
    install_natgw
    ;;
uninstall)
    uninstall_natgw
    ;;
purge)
    uninstall_natgw
    rm -rf "$root/etc/natgw" "$root/var/log/natgw"
    if [ -z "$root" ] && getent group natgw > /dev/null; then
        groupdel natgw
    fi
    ;;
*)
    sed -n 's/^# //p' "$0" >&2
    exit 2
    ;;
esac
