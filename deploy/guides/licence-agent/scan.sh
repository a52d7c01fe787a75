#!/bin/sh
# A guarded scan: SCANNER's output becomes $OUTPUT, whole, only if the VM did not move meanwhile.
# Usage: scan.sh SCANNER [ARGUMENT…], say: scan.sh lshw -json
OUTPUT=${OUTPUT:-/var/lib/guest-client/meter.json}
exec guest-client scan \
    --output "$OUTPUT" \
    --report "$OUTPUT.report" \
    --repeat-if-migrated \
    --notify-if-migrated \
    -- "$@"
