#!/usr/bin/env bash
exec "$(dirname "$0")/reproduce.sh" lu_table1 "$@"
