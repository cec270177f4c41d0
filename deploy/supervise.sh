#!/bin/bash
# supervise.sh RUN_DIR LOG_DIR BIN_DIR CONFIG: what systemd does for an installed node, for a node
# that was not installed: keeps peplos-holder and peplosd running until it gets SIGTERM.
# Writes RUN_DIR/{supervisor,holder,peplosd}.pid.
set -u
run_dir=$1 log_dir=$2 bin_dir=$3 config=$4
holder= daemon= stopping=

stop_all() {
    stopping=1
    # The daemon first: it answers what it has; the holder has nothing to flush.
    [ -n "$daemon" ] && kill -TERM "$daemon" 2>/dev/null && wait "$daemon" 2>/dev/null
    [ -n "$holder" ] && kill -TERM "$holder" 2>/dev/null && wait "$holder" 2>/dev/null
    rm -f "$run_dir"/{supervisor,holder,peplosd}.pid
    exit 0
}
trap stop_all TERM INT
trap '' HUP

start_holder() {
    "$bin_dir/peplos-holder" "$run_dir/holder.sock" >>"$log_dir/holder.log" 2>&1 &
    holder=$!
    echo "$holder" >"$run_dir/holder.pid"
}
start_daemon() {
    "$bin_dir/peplosd" --config "$config" >>"$log_dir/peplosd.log" 2>&1 &
    daemon=$!
    began=$SECONDS
    echo "$daemon" >"$run_dir/peplosd.pid"
}

echo $$ >"$run_dir/supervisor.pid"
start_holder
start_daemon
pause=0.1
while [ -z "$stopping" ]; do
    wait -n "$holder" "$daemon" 2>/dev/null
    kill -0 "$holder" 2>/dev/null || { sleep 0.1; start_holder; }
    if ! kill -0 "$daemon" 2>/dev/null; then
        # A daemon that cannot start (a full disk, a bad device) is not restarted in a tight loop.
        if [ $((SECONDS - began)) -gt 5 ]; then pause=0.1; else pause=${pause/0.1/0.2}; fi
        sleep "$pause"
        [ "$pause" = 0.2 ] && pause=1
        start_daemon
    fi
done
