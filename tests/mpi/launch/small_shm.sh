#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: small_shm.sh SIZE COMMAND...
# Runs a command where /dev/shm has no more than SIZE (as mount's tmpfs takes it: 4m), seen by it and its children only.
size=$1
shift
unshare --mount true 2>/dev/null || {
  echo "skipped: mount namespaces are not allowed here"
  exit 77
}
exec unshare --mount sh -c 'mount -t tmpfs -o size="$0" tmpfs /dev/shm && exec "$@"' "$size" "$@"
