#!/usr/bin/env bash
exec "$(dirname "$0")/reproduce.sh" moe_pruner_table3 "$@"
