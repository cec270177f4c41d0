#!/bin/bash
# attach_test.sh PROGRAMS WORK [CASE [ARGUMENT]]: the room `attach` against this host's kernel.
# PROGRAMS is the directory with attach-ram-server, peplos-holder and peplos-mounter, WORK an empty
# directory of at most 60 bytes. Needs root, FUSE, loop devices, fio. Every wait is bounded. Leaves
# nothing behind; ends only processes that it started and that run on WORK.
set -u
programs=$(realpath "$1")
work=$(realpath "$2")
image=$work/image
volume=1122334455667788
root=$work/state
mounts=$root/mnt/$volume
data=$mounts/fs/data
cd "$work" || exit 1  # fio leaves its state where it runs
server=""
failures=0
others=()

say() { printf '%s\n' "$*"; }
check() {  # check DESCRIPTION COMMAND...
    local what=$1
    shift
    if "$@"; then say "  ok    $what"; else
        say "  FAIL  $what"
        failures=$((failures + 1))
        tail -n 3 "$work/err" | sed 's/^/        /'
    fi
}
# until_true SECONDS COMMAND...: true as soon as the command is, false when the time is over.
until_true() {
    local rounds=$(($1 * 20))
    shift
    while ! "$@" 2>/dev/null; do
        [ $((rounds -= 1)) -gt 0 ] || return 1
        sleep 0.05
    done
}
ended() {  # a zombie has ended, too
    local state
    state=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null)
    case $state in '' | Z* | X*) return 0 ;; esac
    return 1
}
end_processes() {  # end_processes PID...: kill -9, and their end
    local pid
    for pid in "$@"; do kill -9 "$pid" 2>/dev/null; done
    for pid in "$@"; do until_true 10 ended "$pid" || say "  FAIL  $pid does not end"; done
}
connections() {  # the numbers of our FUSE connections
    sed -n "s|^[0-9]* [0-9]* 0:\([0-9]*\) [^ ]* $mounts/disk .*|\1|p" /proc/self/mountinfo
}
holder_pids() {  # only ours: the socket's path is unique to this run
    local pid
    for pid in $(pgrep -x peplos-holder); do
        tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q "$root/holder.sock" && echo "$pid"
    done
}
# start FS SIZE SECTOR DELAY_US: starts the server and waits for its first answer.
start() {
    rm -f "$work/in"
    mkfifo "$work/in"
    : >"$work/out"
    "$programs/attach-ram-server" "$root" "$image" "$2" "$1" "$3" "${4:-0}" \
        <>"$work/in" >>"$work/out" 2>>"$work/err" &
    server=$!
    disown "$server"
    answer_count=0
    answer
}
answer() {  # the next line of the server's output, in $reply
    answer_count=$((answer_count + 1))
    reply=""
    for _ in $(seq 240); do
        reply=$(sed -n "${answer_count}p" "$work/out")
        [ -n "$reply" ] && return 0
        ended "$server" && break
        sleep 0.05
    done
    return 1
}
ask() {
    echo "$*" >"$work/in"
    answer
    say "        $* -> $reply"
}
kill_server() {
    end_processes "$server"
}
# What is started in the background runs its command from now on: in its directory or namespace.
runs() { [ "$(cat "/proc/$1/comm")" = "$2" ]; }  # runs PID COMMAND
a_holder_has_it() {
    local pid
    for pid in $(holder_pids); do readlink "/proc/$pid/fd/"* | grep -qx /dev/fuse && return; done
    return 1
}
ours_mounted() { grep -q " $mounts/" /proc/self/mountinfo; }
our_loops() {  # from sysfs: losetup asks each device, and one of another test may hang
    grep -ls "^$mounts/disk" /sys/block/loop*/loop/backing_file |
        sed 's|/sys/block/\(.*\)/loop/.*|/dev/\1|'
}
loops() { our_loops | wc -l; }
no_loops() { [ "$(loops)" = 0 ]; }
one_loop() { [ "$(loops)" = 1 ]; }
no_trace() { ! ours_mounted && no_loops; }
another_holder() { [ -n "$(holder_pids)" ] && [ "$(holder_pids)" != "$1" ]; }
ok_reply() { [[ $reply == ok* ]]; }
reply_has() { [[ $reply == *"$1"* ]]; }

fresh() {  # between cases: nothing attached, an empty image
    local connection device place
    # Nobody serves them afterwards: what waits gets its error, and everything can be taken away.
    for connection in $(connections); do
        echo 1 >"/sys/fs/fuse/connections/$connection/abort" 2>/dev/null
    done
    [ -z "$server" ] || end_processes "$server"
    end_processes "${others[@]}" $(holder_pids)
    others=()
    for place in fs fs disk disk; do
        if grep -q " $mounts/$place " /proc/self/mountinfo; then umount -l "$mounts/$place"; fi
    done
    for device in $(our_loops); do losetup -d "$device"; done
    until_true 5 no_loops || say "  FAIL  loop devices stay: $(our_loops)"
    rm -f "$image" "$root/formatted"
    mkdir -p "$root"
    : >"$work/err"
}
finish() {
    fresh
    umount "$root/mnt" 2>/dev/null
    exit $((failures > 0))
}
trap finish EXIT
trap 'exit 1' INT TERM

requests_beyond() {  # requests_beyond COUNT: whether the server got more than that
    ask counters >/dev/null
    [ "$(echo "$reply" | cut -d' ' -f2)" -gt "$1" ]
}

verified_writes() {  # verified_writes TARGET_ARGUMENTS...: fio with verification, three kills
    timeout -k 5 60 fio --name=verify "$@" --rw=randwrite --bs=4k --direct=1 --iodepth=16 \
        --ioengine=libaio --verify=crc32c --loops=2 --output="$work/fio" &
    local fio=$! i resent=0
    ask counters
    check "writes arrive" until_true 20 requests_beyond $(($(echo "$reply" | cut -d' ' -f2) + 100))
    for i in 1 2 3; do
        sleep 0.7
        kill_server
        sleep 0.2
        start "$fs" "$size" 512 1000
        check "resumed after kill $i" ok_reply
        ask counters
        resent=$((resent + $(echo "$reply" | cut -d' ' -f3)))
    done
    check "the kernel handed unanswered requests out again ($resent)" [ "$resent" -gt 0 ]
    wait "$fio"  # within its timeout
    fio_code=$?
    check "fio saw no error and no mismatch" [ "$fio_code" = 0 ]
    ask counters
    check "no I/O error was answered" [ "${reply##* }" = 0 ]
}

trim_frees() {  # trim_frees KIB: whether a trim leaves less than that
    sync -f "$data"
    ask trim
    [ "$(du -k "$image" | cut -f1)" -lt "$1" ]
}

case_life() {
    fs=$1 size=$((1 << 30))
    say "$fs: attach, three kill -9 under verified writes, trim, detach"
    start "$fs" "$size" 512 1000
    check "attached" ok_reply
    check "one loop device with direct I/O" \
        [ "$(losetup -n -O DIO "$(echo "$reply" | cut -d' ' -f2)" | tr -d ' ')" = 1 ]
    check "the directory for containers is empty and has its owner" \
        [ "$(stat -c %u:%g:%a "$data"):$(ls -A "$data")" = 1000:1001:750: ]
    verified_writes --directory="$data" --size=32m
    ask attach
    check "a second attach is the same one" [ "$(loops)" = 1 ]
    sync -f "$data"
    local before
    before=$(du -k "$image" | cut -f1)
    rm -f "$data"/verify*
    # xfs frees a deleted file's blocks in the background: a trim finds what is free by then.
    check "trim gave space back" until_true 20 trim_frees $((before - 25000))
    echo survives >"$data/file"
    ask detach
    check "detached" ok_reply
    check "no mount and no loop device is left" no_trace
    ask attach
    check "attached again with its data" [ "$(cat "$data/file")" = survives ]
    ask detach
    fresh
}

case_raw_device() {
    fs=ext4 size=$((256 << 20))
    say "the loop device itself: verified writes and discards over three kill -9"
    start "$fs" "$size" 512 1000
    local device
    device=$(echo "$reply" | cut -d' ' -f2)
    umount "$mounts/fs"  # auto-clears the loop device; take one of our own
    device=$(losetup --direct-io=on --show -f "$mounts/disk")
    exec 9<"$device"  # or the device would go when fio opens it anew
    verified_writes --filename="$device" --size=32m
    # blkdiscard and zeroes must read back as zeros, through the same path.
    check "discard" blkdiscard -o 1048576 -l 4194304 "$device"
    check "discarded blocks read as zeros" \
        cmp -s -n 4194304 -i 1048576:0 "$device" /dev/zero
    exec 9<&-
    losetup -d "$device" 2>/dev/null
    fresh
}

case_holder() {
    fs=ext4 size=$((256 << 20))
    say "the holder dies"
    start "$fs" "$size" 512
    echo kept >"$data/file"
    sync -f "$data"
    local old
    old=$(holder_pids)
    end_processes "$old"
    check "the daemon started another holder" until_true 10 another_holder "$old"
    check "and gave it the descriptor" until_true 10 a_holder_has_it
    kill_server
    start "$fs" "$size" 512
    check "the new holder had the descriptor: resumed" grep -q "volume resumed" "$work/err"
    check "data are there" [ "$(cat "$data/file")" = kept ]

    say "holder and daemon die together"
    end_processes "$server" $(holder_pids)
    check "I/O fails honestly instead of hanging" \
        bash -c "! timeout 10 dd if=/dev/zero of='$data/late' bs=4k count=1 oflag=direct \
                 2>/dev/null"
    start "$fs" "$size" 512
    check "attached anew" ok_reply
    check "data are there" [ "$(cat "$data/file")" = kept ]
    check "one loop device" one_loop
    ask detach
    check "no trace" no_trace
    fresh
}

case_busy() {
    fs=ext4 size=$((256 << 20))
    say "release is the kernel's decision"
    start "$fs" "$size" 512
    (cd "$data" && exec sleep 100) &
    others+=($!)
    check "a process in the directory" until_true 20 runs "${others[0]}" sleep
    ask detach
    check "busy, and the process is named" reply_has "(sleep)"
    check "still mounted" ours_mounted
    kill "${others[0]}"
    wait "${others[0]}" 2>/dev/null
    unshare -m --propagation private sleep 100 &
    others+=($!)
    check "a private mount namespace" until_true 20 runs "${others[1]}" sleep
    ask detach
    check "busy while a private mount namespace has it" reply_has "mount namespace"
    ask attach
    check "attached again, on the same loop device" [ "$(loops)" = 1 ]
    kill "${others[1]}"
    wait "${others[1]}" 2>/dev/null
    ask detach
    check "free once that is gone" ok_reply
    check "no trace" no_trace

    say "by force"
    ask attach
    (cd "$data" && exec sleep 100) &
    others+=($!)
    check "a process in the directory" until_true 20 runs "${others[2]}" sleep
    ask force
    check "detached by force" ok_reply
    check "no mount is left" bash -c "! grep -q ' $mounts/' /proc/self/mountinfo"
    end_processes "${others[2]}"
    check "no loop device is left" until_true 5 no_loops
    fresh
}

case_grow() {
    say "xfs grows online"
    start xfs $((512 << 20)) 512
    ask grow $((1 << 30))
    check "grown online" reply_has "grown online"
    ask info
    check "the file system has the new size" [ "$(echo "$reply" | cut -d' ' -f4)" -gt 900000000 ]
    ask detach
    fresh
    say "xfs grows in many steps under direct writes"
    local bytes=$((512 << 20)) step fio writes
    start xfs "$bytes" 512
    fio --name=writes --directory="$data" --size=16m --rw=randwrite --bs=4k --direct=1 \
        --iodepth=16 --ioengine=libaio --time_based --runtime=120 --output="$work/fio" &
    fio=$!
    ask counters
    writes=$(echo "$reply" | cut -d' ' -f2)
    check "writes arrive" until_true 20 requests_beyond $((writes + 1000))
    for step in $(seq 24); do
        bytes=$((bytes + (16 << 20)))
        ask grow "$bytes"
        reply_has "grown online" || break
    done
    # A write that ends while the kernel asks for the size must not make it forget the answer.
    check "each of 24 steps: grown online ($step)" reply_has "grown online"
    check "the loop device has the size" [ "$(blockdev --getsize64 "$(our_loops)")" = "$bytes" ]
    check "and gives its last block" [ "$(dd if="$(our_loops)" iflag=direct bs=4k \
        skip=$((bytes / 4096 - 1)) status=none | wc -c)" = 4096 ]
    check "the writes go on meanwhile" kill -0 "$fio"
    kill "$fio"
    wait "$fio"
    ask counters
    check "no I/O error was answered" [ "${reply##* }" = 0 ]
    ask detach
    fresh
    say "ext4 grows online, or at the next mount where the capability is missing"
    start ext4 $((512 << 20)) 512
    ask grow $((1 << 30))
    check "answered" ok_reply
    ask detach
    ask attach
    check "the file system has the new size" [ "$(echo "$reply" | cut -d' ' -f4)" -gt 900000000 ]
    ask detach
    fresh
}

case_contents() {
    say "foreign and damaged contents"
    truncate -s 512M "$image"
    mkfs.xfs -q -f "$image"
    local before
    before=$(md5sum <"$image")
    start ext4 $((512 << 20)) 512
    check "a blank volume with a foreign signature is refused" reply_has "foreign data"
    check "and untouched" [ "$(md5sum <"$image")" = "$before" ]
    check "no trace" no_trace
    fresh
    touch "$root/formatted"
    start ext4 $((512 << 20)) 512
    check "a formatted volume without its file system is refused" reply_has "should carry ext4"
    fresh
    start ext4 $((512 << 20)) 512
    ask detach
    kill_server
    dd if=/dev/urandom of="$image" bs=1k seek=1 count=1 conv=notrunc 2>/dev/null
    printf '\x53\xef' | dd of="$image" bs=1 seek=$((0x438)) conv=notrunc 2>/dev/null
    start ext4 $((512 << 20)) 512
    check "a damaged file system: the command to repair it" reply_has "e2fsck -f /dev/loop"
    check "the device stays for the repair" [ "$(loops)" = 1 ]
    fresh
    say "4096-byte sectors"
    start ext4 $((256 << 20)) 4096
    check "attached" ok_reply
    check "the loop device has them" \
        [ "$(blockdev --getss "$(echo "$reply" | cut -d' ' -f2)")" = 4096 ]
    ask detach
    fresh
}

case_half_made() {
    local i
    say "killed while it formats and mounts"
    for i in 1 2 3 4 5 6; do
        start_unanswered ext4 $((512 << 20)) 512 3000
        sleep "0.$((i * 7 % 10))$i"
        kill_server
        start ext4 $((512 << 20)) 512
        check "attached after a kill at step $i" ok_reply
        check "one loop device" [ "$(loops)" = 1 ]
        check "usable" touch "$data/file"
        fresh
    done
}
start_unanswered() {
    rm -f "$work/in"
    mkfifo "$work/in"
    : >"$work/out"
    "$programs/attach-ram-server" "$root" "$image" "$2" "$1" "$3" "$4" \
        <>"$work/in" >>"$work/out" 2>>"$work/err" &
    server=$!
    disown "$server"
}

case_stale() {
    say "leftovers are found and mended"
    start ext4 $((256 << 20)) 512
    end_processes "$server" $(holder_pids)
    rm -f "$image" "$root/formatted"
    truncate -s 512M "$image"
    mkfs.xfs -q -f "$image"
    start ext4 $((512 << 20)) 512  # refuses the foreign data, so nothing is attached
    check "refused" reply_has "foreign data"
    ask stale
    check "the mounts and the loop device are found" reply_has "ok 3"
    ask mend
    ask stale
    check "mended" reply_has "ok 0"
    check "no trace" no_trace
    fresh
}

others=()
fresh
if [ $# -gt 2 ]; then
    "case_$3" "${4:-}"
else
    case_life ext4
    case_life xfs
    case_raw_device
    case_holder
    case_busy
    case_grow
    case_contents
    case_half_made
    case_stale
fi
if [ "$failures" = 0 ]; then say "attach: all passed"; else say "attach: $failures failed"; fi
