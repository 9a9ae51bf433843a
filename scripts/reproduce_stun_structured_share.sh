#!/usr/bin/env bash
exec "$(dirname "$0")/reproduce.sh" stun_structured_share "$@"
