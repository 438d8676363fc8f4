#!/bin/sh
# Rules, routes and sysctls of transparent mode (docs/transparent.md), for IPv4 and IPv6.
#
#   transparent-routes.sh up   [MARK [TABLE]]    adds what is missing; again and again without harm
#   transparent-routes.sh down [MARK [TABLE]]    removes the rules and the routes
#
# MARK and TABLE are proxy.transparent_mark and proxy.transparent_table, both 28016 unless given. They last until the
# next boot: run it from a unit before mc-proxy, or use the files in transparent/ with systemd-networkd.
#
# Backends that are routed through this host, behind BACKENDS, want a rule each, and no mark:
#
#   BACKENDS="eth1:10.0.0.5:8443 eth1:[fd00::5]:8443" transparent-routes.sh up
#
# `down` with the same BACKENDS removes these too. The sysctls stay as they are on `down`: others may need them by now.
# -f: [fd00::5] is an address, and no pattern of file names.
set -euf

usage() {
    echo "usage: [BACKENDS='INTERFACE:ADDRESS:PORT ...'] $0 up|down [MARK [TABLE]]" >&2
    exit 2
}

[ $# -ge 1 ] && [ $# -le 3 ] || usage
action=$1
mark=${2:-28016}
table=${3:-28016}
backends=${BACKENDS:-}

fail() {
    echo "$0: $1" >&2
    exit 1
}

for number in "$mark" "$table"; do
    case $number in
        0x*[!0-9a-fA-F]* | 0x | 0x?????????* | '') usage ;;
        0x*) ;;
        *[!0-9]* | ???????????*) usage ;;
        # To printf it would be octal.
        0?*) fail "$number: write it without the leading zero" ;;
    esac
done
# `ip rule` shows marks in hexadecimal.
mark=$(printf '0x%x' "$mark")
table=$(printf '%d' "$table")
# Every packet without a mark has mark 0.
[ "$mark" != 0x0 ] || fail "mark 0 is that of all other packets"
[ ${#mark} -le 10 ] && [ "$table" -le 4294967295 ] || fail "above 4294967295"
case $table in
    0) fail "table 0 is none" ;;
    253 | 254 | 255) fail "table $table is one of the kernel's own: default, main and local" ;;
esac

has_ipv6() { [ "$(cat /proc/sys/net/ipv6/conf/lo/disable_ipv6 2>/dev/null)" = 0 ]; }

# rule FAMILY SELECTOR...: there may be several of one kind, so that one is added only if there is none.
add_rule() {
    family=$1
    shift
    [ -n "$(ip "$family" rule list "$@" lookup "$table")" ] || ip "$family" rule add "$@" lookup "$table"
}

remove_rule() {
    family=$1
    shift
    while ip "$family" rule del "$@" lookup "$table" 2>/dev/null; do :; done
}

# each_backend COMMAND: calls it with family and selector of every backend's rule.
each_backend() {
    for backend in $backends; do
        interface=${backend%%:*}
        rest=${backend#*:}
        port=${rest##*:}
        address=${rest%:*}
        address=${address#[}
        address=${address%]}
        if [ -z "$interface" ] || [ -z "$address" ] || [ "$address" = "$rest" ]; then usage; fi
        case $port in '' | *[!0-9]*) usage ;; esac
        case $address in *:*) family=-6 ;; *) family=-4 ;; esac
        "$1" "$family" iif "$interface" from "$address" ipproto tcp sport "$port"
    done
}

set_sysctl() {
    # Only what differs is written, so that this runs where /proc/sys is read-only and right.
    [ "$(cat "/proc/sys/$1")" = 1 ] || echo 1 >"/proc/sys/$1"
}

# What is removed may not be there, so that failures of `down` say nothing.
case $action in
    up | down) [ "$(id -u)" = 0 ] || fail "$action: needs root" ;;
    *) usage ;;
esac

case $action in
    up)
        add_rule -4 fwmark "$mark"
        ip -4 route replace local 0.0.0.0/0 dev lo table "$table"
        # The socket that a backend accepts takes over the mark of the SYN; despite its name for both families.
        set_sysctl net/ipv4/tcp_fwmark_accept
        # So does the reset of a backend that is down.
        set_sysctl net/ipv4/fwmark_reflect
        if has_ipv6; then
            add_rule -6 fwmark "$mark"
            ip -6 route replace local ::/0 dev lo table "$table"
            set_sysctl net/ipv6/fwmark_reflect
        fi
        each_backend add_rule
        ;;
    down)
        each_backend remove_rule
        remove_rule -4 fwmark "$mark"
        ip -4 route del local 0.0.0.0/0 dev lo table "$table" 2>/dev/null || :
        if has_ipv6; then
            remove_rule -6 fwmark "$mark"
            ip -6 route del local ::/0 dev lo table "$table" 2>/dev/null || :
        fi
        ;;
esac
