#!/usr/bin/env bash
exec "$(dirname "$0")/reproduce.sh" owl_lambda_m "$@"
