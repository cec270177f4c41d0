#!/bin/bash
# Runs in the virtual machine, as a service: a line on the second serial port is "SECONDS COMMAND"
# with the command in base64; the answer is "@@STATUS OUTPUT", the output in base64. The first line
# of every life is "@@ready", on a line of its own whatever the life before left half written.
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 raw -echo
printf '\n@@ready\n'
while read -r seconds command; do
    output=$(timeout -k 5 "$seconds" bash -c "$(base64 -d <<<"$command")" 2>&1 </dev/null)
    status=$?
    printf '@@%s %s\n' "$status" "$(base64 -w0 <<<"$output")"
done
