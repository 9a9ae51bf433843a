#!/bin/sh
# Removes torchvision from an environment if it was built for another torch: transformers imports what is there, and
# does without what is not.
set -eu
python="$1/bin/python"
if "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('torchvision') is None)" &&
    ! "$python" -c "import torchvision" 2>/dev/null; then
    "$python" -m pip uninstall --quiet --yes torchvision
fi
