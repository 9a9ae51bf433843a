#!/usr/bin/env bash
exec "$(dirname "$0")/reproduce.sh" ablate_linkage "$@"
