#!/usr/bin/env bash
exec "$(dirname "$0")/reproduce.sh" stun_expert_pruning "$@"
