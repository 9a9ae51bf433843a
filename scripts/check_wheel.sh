#!/usr/bin/env bash
# Builds the wheel, holds its content to what git tracks, and runs README's first commands from it, far from the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3.11}
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT

"$python" -m venv "$here/venv"
pip=("$here/venv/bin/pip" --quiet --disable-pip-version-check)
"${pip[@]}" wheel --no-deps --wheel-dir "$here" .
wheel=("$here"/stun_exp-*.whl)

# conf lies beside the package in a checkout, and inside it in a wheel.
git ls-files stun_exp conf | sed 's,^conf/,stun_exp/conf/,' | sort > "$here/tracked"
"$python" -m zipfile --list "${wheel[0]}" | awk '{ print $1 }' | grep '^stun_exp/' | sort > "$here/packed"
if ! diff "$here/tracked" "$here/packed"; then
  echo "scripts/check_wheel.sh: the wheel's files (>) are not those that git tracks (<); see .gitignore" >&2
  exit 1
fi

"${pip[@]}" install ${TORCH:-torch==2.13.0}
"${pip[@]}" install --constraint constraints.txt "${wheel[0]}"
mkdir "$here/elsewhere"
cd "$here/elsewhere"
unset PYTHONPATH
"$here/venv/bin/python" -c "import stun_exp, sys; assert stun_exp.__file__.startswith(sys.prefix), stun_exp.__file__"
"$here/venv/bin/stun" sparsity=0.4 eval.limit=8 hydra.run.dir=x
"$here/venv/bin/stun" -m experiment=demo 'sparsity=[0.4]' eval.limit=8
