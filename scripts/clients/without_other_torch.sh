#!/bin/sh
# Removes torchvision, torchaudio and torchcodec from an environment if they were built for another torch: vLLM and
# transformers import what is there, and do without what is not.
set -eu
python="$1/bin/python"
for package in torchvision torchaudio torchcodec; do
    if "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$package') is None)" &&
        ! "$python" -c "import $package" 2>/dev/null; then
        "$python" -m pip uninstall --quiet --yes "$package"
    fi
done
