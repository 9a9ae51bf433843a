#!/usr/bin/env bash
# Installs the Debian packages that tests need and this machine lacks: Slurm, for the launchers, and a browser, for the
# page. Without them, and without the right to install them, those tests are skipped.
set -euo pipefail
missing=()
for package in slurm-wlm munge chromium; do
  dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2> /dev/null | grep -qx installed || missing+=("$package")
done
[ ${#missing[@]} = 0 ] && exit
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "not installed, and the tests that need them are skipped: ${missing[*]}" >&2
  exit
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}"
