#!/bin/bash
# Plays an APC rack PDU on a terminal: apc.sh menu|cli telnet|ssh FOLDER
#
# FOLDER/outlets/N says ON or OFF; FOLDER/log gets a line for every change. One session at a time: others are hung up on.
# Over telnet it asks for user and password: op, sesame.
kind=$1 way=$2 folder=$3

exec 9>"$folder/lock"
flock --nonblock 9 || exit 0
stty raw -echo

say() { printf "$1\r\n" "${@:2}"; }

# Reads a line into $said, or a single escape.
hear() {
    said=
    while IFS= read -r -N1 key; do
        case $key in
            # bash makes the terminal translate it while it reads. The servers pass on one of CR LF.
            $'\r' | $'\n') printf '\r\n'; return ;;
            $'\e') said=$key; return ;;
            *) said+=$key; if [[ $1 ]]; then printf '*'; else printf %s "$key"; fi ;;
        esac
    done
    exit 0
}

ask() { printf '\033[1m%s\033[0m' "$1"; hear "$2"; }

login() {
    for try in 1 2 3; do
        ask $'\n\rUser Name : '; user=$said
        ask $'\rPassword  : ' hidden
        [[ $user = op && $said = sesame ]] && return
        # A careless device.
        say 'No access for %s with %s' "$user" "$said"
    done
    exit 0
}

switch() { # OUTLET ON|OFF|REBOOT
    echo "$2 $1" >> "$folder/log"
    case $2 in
        ON | OFF) echo "$2" > "$folder/outlets/$1" ;;
    esac
}

state() { cat "$folder/outlets/$1"; }

outlets() { ls "$folder/outlets" | sort -n; }

foot() { say ''; say '     <ESC>- Back, <ENTER>- Refresh, <CTRL-L>- Event Log'; ask '> '; }

main() {
    while :; do
        say ''; say '------- Control Console -------------------------------'; say ''
        say '     1- Device Manager'; say '     2- Network'; say '     3- System'; say '     4- Logout'
        foot
        case $said in
            1) manager ;;
            4) say 'Connection Closed - Bye'; exit 0 ;;
        esac
    done
}

manager() {
    while :; do
        say ''; say '------- Device Manager --------------------------------'; say ''
        say '     1- Phase Management'; say '     2- Outlet Management'; say '     3- Power Supply Status'
        foot
        case $said in
            2) management ;;
            $'\e') return ;;
        esac
    done
}

management() {
    while :; do
        say ''; say '------- Outlet Management -----------------------------'; say ''
        say '     1- Outlet Control/Configuration'; say '     2- Outlet Restriction'
        foot
        case $said in
            1) list ;;
            $'\e') return ;;
        esac
    done
}

list() {
    while :; do
        say ''; say '------- Outlet Control/Configuration ------------------'; say ''
        local row=0
        for outlet in $(outlets); do
            if ((row++ == 12)); then
                printf '\r\n     Press <ENTER> to continue...'
                hear
            fi
            printf '%6s- %-25s %s\r\n' "$outlet" "Outlet $outlet" "$(state "$outlet")"
        done
        say '     %s- Master Control/Configuration' $((row + 1))
        foot
        if [[ $said = $'\e' ]]; then
            return
        elif [[ $said && -e $folder/outlets/$said ]]; then
            outlet "$said"
        fi
    done
}

outlet() {
    while :; do
        say ''; say '------- Outlet %s -------------------------------------' "$1"; say ''
        say '        State        : %s' "$(state "$1")"
        say '     1- Control Outlet'; say '     2- Configure Outlet'
        foot
        case $said in
            1) control "$1" ;;
            $'\e') return ;;
        esac
    done
}

control() {
    while :; do
        say ''; say '------- Control Outlet --------------------------------'; say ''
        say '     1- Immediate On'; say '     2- Immediate Off'; say '     3- Immediate Reboot'; say '     7- Cancel'
        foot
        case $said in
            1) confirm "$1" ON ;;
            2) confirm "$1" OFF ;;
            3) confirm "$1" REBOOT ;;
            $'\e') return ;;
        esac
    done
}

confirm() {
    ask "        Enter 'YES' to continue or <ENTER> to cancel : "
    [[ $said = YES ]] || return
    switch "$1" "$2"
    say '        Command successfully issued.'
    ask '        Press <ENTER> to continue...'
}

cli() {
    while :; do
        ask 'apc>'
        read -r command outlet <<< "$said"
        case $command in
            bye) exit 0 ;;
            olStatus | olOn | olOff | olReboot) ;;
            '') continue ;;
            *) say 'E101: Command Not Found'; say ''; continue ;;
        esac
        if [[ ! $outlet || ! -e $folder/outlets/$outlet ]]; then
            say 'E102: Parameter Error'; say ''
            continue
        fi
        say 'E000: Success'
        case $command in
            olStatus) [[ $(state "$outlet") = ON ]] && shown=On || shown=Off; say ' %s: Outlet %s: %s' "$outlet" "$outlet" "$shown" ;;
            olOn) switch "$outlet" ON ;;
            olOff) switch "$outlet" OFF ;;
            olReboot) switch "$outlet" REBOOT ;;
        esac
        say ''
    done
}

[[ $way = telnet ]] && login
say ''
say 'American Power Conversion               Network Management Card AOS      v3.7.3'
say 'Name      : RackPDU                                   User : Administrator'
if [[ $kind = menu ]]; then main; else cli; fi
