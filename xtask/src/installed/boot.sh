#!/bin/sh
# Starts systemd as process 1 of its own namespaces, on a copy-on-write of a root folder: $1 is that folder, $2 a mount point.
# All of it is gone with the last process: what is written lies on a tmpfs of this mount namespace.
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
root=$2/root
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$root"

# What is the machine's is only to be read: /sys, and all of /proc/sys that is not of the network namespace.
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount -o remount,bind,ro "$root/proc/sys"
if [ -e "$root/proc/sysrq-trigger" ]; then
    mount --bind "$root/proc/sysrq-trigger" "$root/proc/sysrq-trigger"
    mount -o remount,bind,ro "$root/proc/sysrq-trigger"
fi
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t bpf -o mode=0700 bpf "$root/sys/fs/bpf"

mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    : > "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
for folder in dev/shm run tmp; do
    mount -t tmpfs tmpfs "$root/$folder"
done

# Nothing of the folder's own beyond the basics: no file systems, no services.
: > "$root/etc/fstab"
mkdir -p "$root/run/systemd/system"
cat > "$root/run/systemd/system/natgw-try.target" <<END
[Unit]
Requires=sysinit.target
After=sysinit.target
END
cd "$root"
exec env -i container=natgw-try PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    chroot . /lib/systemd/systemd --system --unit=natgw-try.target --log-target=journal --show-status=no
